"""TrainingExamples -> batches of tensors.

Shapes: N rows of the dataset, B rows of a batch, L tokens of its longest row, U distinct images of it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from core.errors import InputError
from core.models.denoiser import Pixels, TrainableDenoiser
from core.models.special_tokens import image_placeholder
from core.training.order import ByLength, DataOrder
from data_contracts import TokenKind

LoadImage = Callable[[str], NDArray[np.uint8]]
Preprocess = Callable[[Sequence[NDArray[np.uint8]]], Pixels]
ImagePositions = Callable[[int, int], int]
_DECODERS = 4
_AT_ONCE = 64
"""Images in memory together while all are measured."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward and its loss need. Rows are padded on the right to the longest: kind PAD, not valid, weight 0.

    `pixels` holds each distinct image of the batch once, row b shows image `image_index_B[b]`; both are None for text.
    `regions_BL` is None if no row of the dataset is grounded. `positions_B`: of each row in the model, where images
    stand inside the text; None where a row is as long as its text.
    """

    input_ids_BL: Tensor
    target_ids_BL: Tensor
    kinds_BL: Tensor
    weights_BL: Tensor
    valid_BL: Tensor
    regions_BL: Tensor | None
    pixels: Pixels | None
    image_index_B: Tensor | None
    positions_B: Tensor | None = None

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids_BL.shape[0]

    @property
    def padding(self) -> Tensor:
        """Share of the positions that are computed and belong to no row."""
        if self.positions_B is None:
            return 1.0 - self.valid_BL.float().mean()
        return 1.0 - self.positions_B.float().mean() / self.positions_B.max()

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device, non_blocking=True)
        return type(self)(**moved)


class ImageCache:
    """Decoded images in memory, up to `max_bytes`; the least recently used leaves first. One decode an image."""

    def __init__(self, load_image: LoadImage, *, max_bytes: int) -> None:
        self._load, self._max_bytes, self._bytes = load_image, max_bytes, 0
        self._images: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def several(self, shas: Sequence[str]) -> list[NDArray[np.uint8]]:
        """Different images, those that are missing decoded by several threads: decoders release Python's lock."""
        missing = [sha for sha in shas if sha not in self._images]
        with ThreadPoolExecutor(_DECODERS, "images") as threads:
            loaded = dict(zip(missing, threads.map(self._load, missing), strict=True))
        return [self._keep(sha, loaded.get(sha)) for sha in shas]

    def positions(self, shas: Sequence[str], image_positions: ImagePositions) -> dict[str, int]:
        """Of each of these images in a text. Raises InputError for one of a size that the model cannot read."""
        found = {}
        for first in range(0, len(shas), _AT_ONCE):
            some = shas[first : first + _AT_ONCE]
            for sha, image in zip(some, self.several(some), strict=True):
                height, width = image.shape[:2]
                try:
                    found[sha] = image_positions(width, height)
                except ValueError as error:
                    raise InputError(f"image {sha} of {width} x {height}: {error}") from error
        return found

    def __call__(self, sha: str) -> NDArray[np.uint8]:
        """The image of uint8 H x W x 3."""
        return self._keep(sha, None)

    def _keep(self, sha: str, loaded: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The image, which becomes the most recently used; `loaded`: what was just decoded."""
        if sha not in self._images:
            self._images[sha] = self._load(sha) if loaded is None else loaded
            self._bytes += self._images[sha].nbytes
        self._images.move_to_end(sha)
        image = self._images[sha]
        while self._bytes > self._max_bytes and self._images:
            self._bytes -= self._images.popitem(last=False)[1].nbytes
        return image


class Examples:
    """A TrainingExamples frame as flat arrays, read once; `batch` gathers any rows of it.

    Args:
        frame: TrainingExamples rows; all have an image, or none.
        pad_id: id that fills short rows.
        objective: says what each token weighs.
        load_image: decodes an image by its sha256; needed if rows have images.
        preprocess: distinct images -> pixels (a denoiser's `pixels`); needed if rows have images.
        image_positions: (width, height) -> positions that an image takes inside the text, in place of one token; every
            image is then read once, at the start. None: images stand outside of the text.
        cache_bytes: memory for decoded images.

    Raises:
        InputError: no rows, rows with images beside rows without, or an image of a size that the model cannot read.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        *,
        pad_id: int,
        objective: ObjectiveSettings,
        load_image: LoadImage | None = None,
        preprocess: Preprocess | None = None,
        image_positions: ImagePositions | None = None,
        cache_bytes: int = 2**30,
    ) -> None:
        if frame.height == 0:
            raise InputError("there are no training rows")
        images = frame.height - frame["image_sha"].null_count()
        if images not in (0, frame.height):
            raise InputError(f"{images} of {frame.height} training rows have an image: all must, or none")
        if images and (load_image is None or preprocess is None):
            raise InputError("the training rows have images: load_image and preprocess are needed")
        self._pad_id, self._objective, self._preprocess = pad_id, objective, preprocess
        self._load = ImageCache(load_image, max_bytes=cache_bytes) if images and load_image else None
        self._length_N = frame["input_ids"].list.len().to_numpy().astype(np.int64)
        self._first_N = np.cumsum(self._length_N) - self._length_N
        self._input, self._target, self._kinds = (
            frame[name].explode().to_numpy() for name in ("input_ids", "target_ids", "kinds")
        )
        self._regions = _flat_regions(frame, self._length_N)
        self._t_N = frame["t"].to_numpy()
        self._recipe_N = frame["recipe"].cast(pl.String).to_numpy().astype(np.str_)
        self._sha_N = frame["image_sha"].to_list()
        self._positions_N = None
        if self._load is not None and image_positions is not None:
            of_image = self._load.positions(list(dict.fromkeys(self._sha_N)), image_positions)
            self._positions_N = self._length_N - 1 + np.array([of_image[sha] for sha in self._sha_N])

    def __len__(self) -> int:
        return len(self._length_N)

    @property
    def pictured(self) -> bool:
        """Whether the rows have images."""
        return self._load is not None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each row in the model, (N,): its tokens, and those of an image inside the text."""
        return self._length_N if self._positions_N is None else self._positions_N

    def labels(self, rows: NDArray[np.int64]) -> int:
        """Tokens of these rows whose image region is known."""
        if self._regions is None:
            return 0
        return sum(
            int((self._regions[first : first + length] >= 0).sum())
            for first, length in zip(self._first_N[rows], self._length_N[rows], strict=True)
        )

    def batch(self, rows: NDArray[np.int64], places_P: NDArray[np.int64] | None = None) -> Batch:
        """The rows with these numbers, in this order; or those at some places of it, which weigh what they do in it."""
        weights_BL = token_weights(
            self._gather(self._kinds, rows, TokenKind.PAD), self._t_N[rows], self._recipe_N[rows], self._objective
        )
        if places_P is not None:
            rows = rows[places_P]
            weights_BL = np.ascontiguousarray(weights_BL[places_P, : self._length_N[rows].max()])

        def gather(flat: NDArray[Any], fill: int) -> NDArray[Any]:
            return self._gather(flat, rows, fill)

        kinds_BL = gather(self._kinds, TokenKind.PAD)
        pixels, image_index_B = self._images(rows)
        return Batch(
            input_ids_BL=torch.from_numpy(gather(self._input, self._pad_id)).long(),
            target_ids_BL=torch.from_numpy(gather(self._target, self._pad_id)).long(),
            kinds_BL=torch.from_numpy(kinds_BL),
            weights_BL=torch.from_numpy(weights_BL),
            valid_BL=torch.from_numpy(kinds_BL != TokenKind.PAD),
            regions_BL=None if self._regions is None else torch.from_numpy(gather(self._regions, -1)),
            pixels=pixels,
            image_index_B=image_index_B,
            positions_B=None if self._positions_N is None else torch.from_numpy(self._positions_N[rows]),
        )

    def _gather(self, flat: NDArray[Any], rows: NDArray[np.int64], fill: int) -> NDArray[Any]:
        """Rows of a flat array side by side, (B, L), short ones filled."""
        length_B = self._length_N[rows]
        column_L = np.arange(int(length_B.max()))[None, :]
        inside_BL = column_L < length_B[:, None]
        place_BL = np.where(inside_BL, self._first_N[rows][:, None] + column_L, 0)
        return np.where(inside_BL, flat[place_BL], flat.dtype.type(fill))

    def _images(self, rows: NDArray[np.int64]) -> tuple[Pixels | None, Tensor | None]:
        """Pixels of the distinct images, and which of them each row shows."""
        if self._load is None or self._preprocess is None:
            return None, None
        place: dict[str, int] = {}
        index = [place.setdefault(self._sha_N[row], len(place)) for row in rows]
        pixels = self._preprocess(self._load.several(list(place)))
        return pixels, torch.tensor(index, device=pixels.device)


class TrainingBatches:
    """The batches of a training: batch k is a pure function of the rows, the seed and k.

    Args:
        frame: TrainingExamples rows; all have an image, or none.
        model: whose tokenizer, preprocessing and device the batches are for.
        load_image: decodes an image by its sha256.
        batch_size: rows a batch.
        seed: of the data order.
        objective: says what each token weighs.
        bucket: updates whose rows are dealt out by length; 0: none.

    Raises:
        InputError: no rows, rows with images beside rows without, or rows that are too long for the model.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        model: TrainableDenoiser,
        load_image: LoadImage,
        *,
        batch_size: int,
        seed: int,
        objective: ObjectiveSettings,
        bucket: int = 0,
    ) -> None:
        pad_id = model.tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise InputError("the tokenizer needs a pad token: set tokenizer.pad_token")
        self._examples = Examples(
            frame,
            pad_id=pad_id,
            objective=objective,
            load_image=load_image,
            preprocess=model.pixels,
            image_positions=None if image_placeholder(model.tokenizer) is None else model.image_positions,
        )
        _check_lengths(self._examples.lengths, model.max_positions)
        plain = DataOrder(rows=frame.height, batch_size=batch_size, seed=seed)
        self.order = plain if bucket == 0 else ByLength(plain=plain, steps=bucket, length_N=self._examples.lengths)
        self._device = next(iter(model.parameters())).device

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0), on the model's device."""
        return self._examples.batch(self.order.step(step)).to(self._device)

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        """Some rows of it, by their places. A token weighs what it does in the whole of them."""
        return self._examples.batch(self.order.step(step), places_P).to(self._device)

    def labels(self, step: int, places_P: NDArray[np.int64] | None = None) -> int:
        """Tokens of its rows, or of some, whose image region is known."""
        rows = self.order.step(step)
        return self._examples.labels(rows if places_P is None else rows[places_P])

    @property
    def pictured(self) -> bool:
        """Whether the rows show images."""
        return self._examples.pictured


def _check_lengths(length_N: NDArray[np.int64], most: int) -> None:
    """Raise InputError if any row is longer than the model reads: now, and not in the middle of a training."""
    too_long = int((length_N > most).sum())
    if too_long:
        raise InputError(
            f"{too_long} of {len(length_N)} training rows are too long: the longest has {int(length_N.max())} "
            f"positions of text and image, and the model reads {most}. Use smaller images, shorter prompts or a "
            "smaller model.response_length"
        )


def _flat_regions(frame: pl.DataFrame, length_N: NDArray[np.int64]) -> NDArray[np.int16] | None:
    """All regions one after another, -1 for rows without; None if no row has any."""
    known_N = frame["regions"].is_not_null()
    if not known_N.any():
        return None
    regions = np.full(int(length_N.sum()), -1, dtype=np.int16)
    regions[np.repeat(known_N.to_numpy(), length_N)] = frame["regions"].filter(known_N).explode().to_numpy()
    return regions

"""TrainingExamples -> batches of tensors.

Shapes: N rows of the dataset, B rows of a batch, L tokens of its longest row, I images that its rows show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.corruption.rows import reject_frame
from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from core.errors import InputError, RowError
from core.ingest.images import LoadImage
from core.models.denoiser import Pixels, TrainableDenoiser
from core.models.special_tokens import image_placeholder
from core.training.image_cache import ImageCache, ImagePositions
from core.training.order import ByLength, DataOrder
from data_contracts import TokenKind

Preprocess = Callable[[Sequence[NDArray[np.uint8]]], Pixels]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward and its loss need. Rows are padded on the right to the longest: kind PAD, not valid, weight 0.

    `pixels` holds each distinct image of the batch once; `image_index_I` are those that the rows show, in reading
    order, and `images_B` says how many each row shows, None: one each. Without images all are None.
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
    image_index_I: Tensor | None
    images_B: tuple[int, ...] | None = None
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
            moved[field.name] = value.to(device, non_blocking=True) if hasattr(value, "to") else value
        return type(self)(**moved)


class Examples:
    """A TrainingExamples frame as flat arrays, read once; `batch` gathers any rows of it.

    Args:
        frame: TrainingExamples rows. Where images stand outside of the text all have one, or none.
        pad_id: id that fills short rows.
        objective: says what each token weighs.
        load_image: decodes an image by its sha256; needed if rows have images.
        preprocess: distinct images -> pixels (a denoiser's `pixels`); needed if rows have images.
        image_positions: (width, height) -> positions that an image takes inside the text, in place of one token; every
            image is then read once, at the start. None: images stand outside of the text.
        cache_bytes: memory for decoded images.

    Raises:
        InputError: no rows, or rows with images beside rows without, where they stand outside of the text.
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
        self._shown_N = frame["image_sha"].is_not_null().to_numpy()
        images = int(self._shown_N.sum())
        if images not in (0, frame.height) and image_positions is None:
            raise InputError(f"{images} of {frame.height} training rows have an image: here all must, or none")
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
        self.unreadable: dict[int, str] = {}
        """Row -> why the model cannot read its image, which counts as one position."""
        self._positions_N = None
        if self._load is not None and image_positions is not None:
            of_image = self._load.positions([sha for sha in dict.fromkeys(self._sha_N) if sha], image_positions)
            self._positions_N = self._length_N.copy()
            for row, sha in enumerate(self._sha_N):
                size = of_image[sha] if sha else 1
                if isinstance(size, str):
                    self.unreadable[row] = size
                else:
                    self._positions_N[row] += size - 1

    def __len__(self) -> int:
        return len(self._length_N)

    @property
    def pictured(self) -> bool:
        """Whether any row has an image."""
        return self._load is not None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each row in the model, (N,): its tokens, and those of an image inside the text."""
        return self._length_N if self._positions_N is None else self._positions_N

    def shows(self, rows: NDArray[np.int64]) -> bool:
        """Whether any of these rows has an image."""
        return bool(self._shown_N[rows].any())

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
        pixels, image_index_I = self._images(rows)
        shown = [int(one) for one in self._shown_N[rows]]
        return Batch(
            input_ids_BL=torch.from_numpy(gather(self._input, self._pad_id)).long(),
            target_ids_BL=torch.from_numpy(gather(self._target, self._pad_id)).long(),
            kinds_BL=torch.from_numpy(kinds_BL),
            weights_BL=torch.from_numpy(weights_BL),
            valid_BL=torch.from_numpy(kinds_BL != TokenKind.PAD),
            regions_BL=None if self._regions is None else torch.from_numpy(gather(self._regions, -1)),
            pixels=pixels,
            image_index_I=image_index_I,
            images_B=None if pixels is None or all(shown) else tuple(shown),
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
        """Pixels of the distinct images, and which of them the rows show."""
        shas = [self._sha_N[row] for row in rows[self._shown_N[rows]]]
        if not shas or self._load is None or self._preprocess is None:
            return None, None
        place: dict[str, int] = {}
        index = [place.setdefault(sha, len(place)) for sha in shas]
        pixels = self._preprocess(self._load.several(list(place)))
        return pixels, torch.tensor(index, device=pixels.device)


class TrainingBatches:
    """The batches of a training: batch k is a pure function of the rows, the seed and k.

    Rows that the model cannot read are left out: `rejects` says which (row_id, outcome, reason, detail).

    Args:
        frame: TrainingExamples rows, see `Examples`.
        model: whose tokenizer, preprocessing and device the batches are for.
        load_image: decodes an image by its sha256.
        batch_size: rows a batch.
        seed: of the data order.
        objective: says what each token weighs.
        bucket: updates whose rows are dealt out by length; 0: none.

    Raises:
        InputError: as `Examples`, or the model can read none of the rows.
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
        lengths = self._examples.lengths
        refused = _refused(self._examples, model.max_positions)
        if len(refused) == frame.height:
            raise InputError(f"the model can read none of the {frame.height} training rows: {refused[0].detail}")
        self.rejects = reject_frame(
            frame["example_id"][list(refused)].to_list(),
            [error.reason for error in refused.values()],
            [error.detail for error in refused.values()],
        )
        self._rows = np.setdiff1d(np.arange(frame.height), list(refused))
        plain = DataOrder(rows=len(self._rows), batch_size=batch_size, seed=seed)
        self._order = plain if bucket == 0 else ByLength(plain=plain, steps=bucket, length_N=lengths[self._rows])
        self._device = next(iter(model.parameters())).device

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0), on the model's device."""
        return self._examples.batch(self._rows_of(step)).to(self._device)

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        """Some rows of it, by their places. A token weighs what it does in the whole of them."""
        return self._examples.batch(self._rows_of(step), places_P).to(self._device)

    def labels(self, step: int, places_P: NDArray[np.int64] | None = None) -> int:
        """Tokens of its rows, or of some, whose image region is known."""
        rows = self._rows_of(step)
        return self._examples.labels(rows if places_P is None else rows[places_P])

    def shows(self, step: int) -> bool:
        """Whether any of its rows shows an image."""
        return self._examples.shows(self._rows_of(step))

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        return self._rows[self._order.step(step)]

    @property
    def pictured(self) -> bool:
        """Whether any row shows an image."""
        return self._examples.pictured


def _refused(examples: Examples, most: int) -> dict[int, RowError]:
    """Rows whose image is of a size that the model cannot read, and rows of more positions than it has."""
    found = {row: RowError("unusable_image", why) for row, why in examples.unreadable.items()}
    for row in np.flatnonzero(examples.lengths > most).tolist():
        size = int(examples.lengths[row])
        found[row] = RowError("row_too_long", f"{size} positions of text and image, but the model reads {most}")
    return dict(sorted(found.items()))


def _flat_regions(frame: pl.DataFrame, length_N: NDArray[np.int64]) -> NDArray[np.int16] | None:
    """All regions one after another, -1 for rows without; None if no row has any."""
    known_N = frame["regions"].is_not_null()
    if not known_N.any():
        return None
    regions = np.full(int(length_N.sum()), -1, dtype=np.int16)
    regions[np.repeat(known_N.to_numpy(), length_N)] = frame["regions"].filter(known_N).explode().to_numpy()
    return regions

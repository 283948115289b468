"""The images of a batch, loaded and preprocessed while the batch before it is decoded.

No more than one batch is ahead, so that a shard's images are never in memory together.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import InputError, RowError
from core.ingest.images import LoadImage, width_and_height
from core.models.denoiser import Denoiser, Pixels

Images = dict[int, NDArray[np.uint8]]
"""Row -> image, in the order of a batch; rows without an image are not in it."""

_THREADS = 4
"""Images loaded at the same time: each takes some ten milliseconds of a core, a batch's decoding takes seconds."""

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(items: Sequence[T], make: Callable[[T], R]) -> Iterator[R]:
    """`make(item)` for each item in order, made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        made: Future[R] | None = None
        for item in items:
            coming = thread.submit(make, item)
            if made is not None:
                yield made.result()
            made = coming
        if made is not None:
            yield made.result()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows whose images could be used. `pixels` of all images, None if there are none or they did not fit."""

    rows: list[int]
    images: Images
    pixels: Pixels | None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Loads the images of rows; `shas` are those of all rows, None for a row without an image."""

    model: Denoiser
    load_image: LoadImage
    shas: Sequence[str | None]

    def loaded(self, rows: Sequence[int], unusable: dict[int, RowError]) -> Images:
        """The images of those `rows` that have one; a row whose image cannot be used goes to `unusable`."""
        with ThreadPoolExecutor(_THREADS, "images") as threads:
            found = list(threads.map(self._load, rows))
        unusable |= {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, RowError)}
        return {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, np.ndarray)}

    def positions(self, rows: Sequence[int], unusable: dict[int, RowError]) -> dict[int, int]:
        """Row -> positions that its image takes in the merged sequence; rows without a usable image are not in it."""
        with ThreadPoolExecutor(_THREADS, "images") as threads:
            found = list(threads.map(self._measure, rows))
        unusable |= {row: size for row, size in zip(rows, found, strict=True) if isinstance(size, RowError)}
        return {row: size for row, size in zip(rows, found, strict=True) if isinstance(size, int)}

    def batch(self, rows: Sequence[int], unusable: dict[int, RowError]) -> Batch:
        """The rows, their images and the pixels that the model makes of them."""
        images = self.loaded(rows, unusable)
        pixels = None
        if images:
            try:
                pixels = self.pixels(images)
            except (InputError, ValueError):  # one that the model's preprocessing cannot take spoils itself alone
                unusable |= {row: error for row, image in images.items() if (error := self._unfit(image)) is not None}
                images = {row: image for row, image in images.items() if row not in unusable}
                pixels = self.pixels(images) if images else None
            except torch.OutOfMemoryError:
                pixels = None  # the decoding asks again, for fewer
        return Batch(rows=[row for row in rows if row not in unusable], images=images, pixels=pixels)

    def pixels(self, images: Images) -> Pixels:
        """What the model makes of images, in their order."""
        return self.model.pixels(list(images.values()))

    def _load(self, row: int) -> NDArray[np.uint8] | RowError | None:
        sha = self.shas[row]
        try:
            return None if sha is None else self.load_image(sha)
        except RowError as error:
            return error

    def _measure(self, row: int) -> int | RowError | None:
        sha = self.shas[row]
        if sha is None:
            return None
        try:
            return self.model.image_positions(*width_and_height(self.load_image, sha))
        except RowError as error:
            return error
        except ValueError as error:
            return RowError("unusable_image", str(error))

    def _unfit(self, image: NDArray[np.uint8]) -> RowError | None:
        try:
            self.model.pixels([image])
        except (InputError, ValueError) as error:
            return RowError("unusable_image", str(error))
        return None

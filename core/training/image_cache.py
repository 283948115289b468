"""Decoded images in memory, for batches that show them again and again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.ingest.images import LoadImage, width_and_height

ImagePositions = Callable[[int, int], int]
_DECODERS = 4


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

    def positions(self, shas: Sequence[str], image_positions: ImagePositions) -> dict[str, int | str]:
        """Of each of these images in a text; of one whose size the model cannot read, why."""
        with ThreadPoolExecutor(_DECODERS, "images") as threads:
            sizes = threads.map(partial(width_and_height, self._load), shas)
        found: dict[str, int | str] = {}
        for sha, (width, height) in zip(shas, sizes, strict=True):
            try:
                found[sha] = image_positions(width, height)
            except ValueError as error:
                found[sha] = f"image {sha} of {width} x {height}: {error}"
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

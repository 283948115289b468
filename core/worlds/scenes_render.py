"""Pictures of scenes: 48 x 48 RGB, one 16-pixel cell an object, with gaussian noise.

Shapes: H = W = 48.
"""

import io
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.worlds.scenes_graph import GRID, Scene

CELL = 16
SIDE = GRID * CELL
NOISE = 8.0
"""Standard deviation of the noise, in levels of 0 to 255."""
JITTER = 1
"""An object is off its cell's centre by at most this many pixels in each direction."""

_RGB = {
    "red": (220, 30, 30),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 225, 50),
    "purple": (140, 50, 190),
    "white": (245, 245, 245),
    "orange": (250, 140, 20),
    "pink": (250, 150, 200),
    "black": (10, 10, 10),
    "gray": (120, 120, 120),
    "brown": (100, 65, 30),
    "teal": (10, 110, 110),
}
_RADIUS = {"small": 3.2, "large": 5.6}


@lru_cache(maxsize=1024)
def _mask(shape: str, size: str, dx: int, dy: int) -> NDArray[np.bool_]:
    """The pixels of a cell that a shape covers, (16, 16)."""
    radius = _RADIUS[size]
    grid = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
    x, y = grid[1] - dx, grid[0] - dy
    mask: NDArray[np.bool_]
    match shape:
        case "circle":
            mask = np.hypot(x, y) <= radius
        case "square":
            mask = np.maximum(abs(x), abs(y)) <= 0.88 * radius
        case "triangle":
            mask = (y <= 0.9 * radius) & (abs(x) <= 0.55 * (y + radius))
        case "cross":
            mask = (np.minimum(abs(x), abs(y)) <= 0.36 * radius) & (np.maximum(abs(x), abs(y)) <= radius)
        case "diamond":
            mask = abs(x) + abs(y) <= 1.15 * radius
        case "ring":
            mask = (np.hypot(x, y) <= radius) & (np.hypot(x, y) >= 0.52 * radius)
        case _:
            raise ValueError(f"no such shape: {shape}")
    return mask


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene's picture, uint8 (H, W, 3)."""
    image_HWC = np.empty((SIDE, SIDE, 3), np.float32)
    image_HWC[:] = _RGB[scene.background]
    offsets = rng.integers(-JITTER, JITTER + 1, size=(len(scene.objects), 2)).tolist()
    for thing, (dx, dy) in zip(scene.objects, offsets, strict=True):
        top, left = thing.row * CELL, thing.column * CELL
        image_HWC[top : top + CELL, left : left + CELL][_mask(thing.shape, thing.size, dx, dy)] = _RGB[thing.colour]
    image_HWC += NOISE * rng.standard_normal(image_HWC.shape, dtype=np.float32)
    return np.clip(image_HWC, 0, 255).astype(np.uint8)


def encode_png(image_HWC: NDArray[np.uint8]) -> bytes:
    """The image as PNG, without the search for matches: noise has none, so this is both quickest and smallest."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue()

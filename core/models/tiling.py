"""LLaVA's anyres tiling: an image as one small view of the whole and a grid of tiles, and their features as one row.

Shapes: T tiles, C channels, S side of a tile in pixels, U side of a tile in features, D hidden size.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from core.errors import InputError

_LEAST_SHRINK = 1.1
"""Features are shrunk only where they exceed the limit by more than this factor, as published."""


@dataclass(frozen=True, kw_only=True)
class TiledImages:
    """Tiles of several images, one image after another; `sizes` are the original (width, height) in pixels."""

    tiles_TCSS: Tensor
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def device(self) -> torch.device:
        """Where the tiles are."""
        return self.tiles_TCSS.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**values | {"tiles_TCSS": self.tiles_TCSS.to(device, non_blocking=non_blocking)})


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """How images are tiled. `pinpoints`: the (width, height) in pixels that the grid may have, multiples of `side`.

    max_tiles: features of a larger grid are shrunk to about those of this many tiles; None: never.
    """

    side: int
    pinpoints: tuple[tuple[int, int], ...]
    max_tiles: int | None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, config: Mapping[str, Any], side: int) -> Self:
        """As config.json of a LLaVA says: image_aspect_ratio, e.g. anyres_max_4, and image_grid_pinpoints.

        Raises:
            InputError: another way of tiling, no grid, or one that does not fit tiles of `side` pixels.
        """
        ratio = str(config.get("image_aspect_ratio"))
        match = re.fullmatch(r"anyres(?:_max_(\d+))?", ratio)
        if match is None or config.get("mm_patch_merge_type") != "spatial_unpad":
            raise InputError(
                f"config.json: image_aspect_ratio {ratio!r} with mm_patch_merge_type "
                f"{config.get('mm_patch_merge_type')!r} is not supported: anyres or anyres_max_N with spatial_unpad is"
            )
        pinpoints = tuple(_pinpoints(config.get("image_grid_pinpoints"), side))
        if any(pixels < side or pixels % side for pinpoint in pinpoints for pixels in pinpoint):
            raise InputError(f"config.json: image_grid_pinpoints are no multiples of the tower's {side} pixels")
        return cls(side=side, pinpoints=pinpoints, max_tiles=int(match[1]) if match[1] else None)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the grid for an image: keeps most of its pixels, and of those wastes least."""

        def kept(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[0] / width, pinpoint[1] / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            return effective, effective - pinpoint[0] * pinpoint[1]

        return max(self.pinpoints, key=kept)

    def tile(self, images: Sequence[NDArray[np.uint8]]) -> TiledImages:
        """uint8 images of H x W x 3 -> normalised tiles, the small view of the whole first."""
        tiles: list[NDArray[np.uint8]] = []
        counts: list[int] = []
        for image in images:
            views = self._views(Image.fromarray(image))
            tiles += views
            counts.append(len(views))
        sizes = tuple((image.shape[1], image.shape[0]) for image in images)
        return TiledImages(tiles_TCSS=normalised(tiles, self.mean, self.std), counts=tuple(counts), sizes=sizes)

    def _views(self, image: Image.Image) -> list[NDArray[np.uint8]]:
        width, height = self.grid(*image.size)
        scale_w, scale_h = width / image.width, height / image.height
        if scale_w < scale_h:
            fitted = (width, min(math.ceil(image.height * scale_w), height))
        else:
            fitted = (min(math.ceil(image.width * scale_h), width), height)
        padded = Image.new("RGB", (width, height))
        corner = ((width - fitted[0]) // 2, (height - fitted[1]) // 2)
        padded.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
        s = self.side
        boxes = [(left, top, left + s, top + s) for top in range(0, height, s) for left in range(0, width, s)]
        whole = image.resize((s, s), Image.Resampling.BICUBIC)
        return [np.asarray(whole), *(np.asarray(padded.crop(box)) for box in boxes)]

    def features_of(self, size: tuple[int, int], side: int) -> int:
        """Features of an image of this (width, height), where a tile has side x side: `arrange` says so itself."""
        columns, rows = (pixels // self.side for pixels in self.grid(*size))
        empty_TND = torch.empty(1 + columns * rows, side * side, 1, device="meta")
        return len(self.arrange(empty_TND, size, empty_TND[0, 0]))

    def arrange(self, features_TND: Tensor, size: tuple[int, int], newline_D: Tensor) -> Tensor:
        """(F, D): the whole's features, then the grid's without what is padding, a newline after each of its rows."""
        u = math.isqrt(features_TND.shape[1])
        columns, rows = (pixels // self.side for pixels in self.grid(*size))
        grid_DHW = features_TND[1:].view(rows, columns, u, u, -1).permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
        grid_DHW = unpadded(grid_DHW, size)
        height, width = grid_DHW.shape[1:]
        if self.max_tiles is not None:
            times = math.sqrt(height * width / (self.max_tiles * u * u))
            if times > _LEAST_SHRINK:
                target = (int(height // times), int(width // times))
                grid_DHW = F.interpolate(grid_DHW[None], target, mode="bilinear")[0]
        newlines_DH1 = newline_D[:, None, None].expand(-1, grid_DHW.shape[1], 1)
        lines_FD = torch.cat([grid_DHW, newlines_DH1.to(grid_DHW.dtype)], dim=2).flatten(1).T
        return torch.cat([features_TND[0], lines_FD])


def normalised(images: Sequence[NDArray[np.uint8]], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of equal size, H x W x 3 -> (B, 3, H, W): from [0, 1], less the mean, over the deviation."""
    batch_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255.0)
    mean_C11, std_C11 = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
    return batch_BCHW.sub_(mean_C11).div_(std_C11)


def unpadded(grid_DHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut off the rows or columns that show nothing but the padding of an image of this (width, height)."""
    width, height = size
    rows, columns = grid_DHW.shape[1:]
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return grid_DHW[:, cut : rows - cut]
    cut = (columns - int(width * (rows / height))) // 2
    return grid_DHW[:, :, cut : columns - cut]


def _pinpoints(written: object, side: int) -> list[tuple[int, int]]:
    """[[w, h], ...] as it is, or "(1x1),...,(6x6)" in tiles. Raises InputError if it is neither."""
    if isinstance(written, str):
        tiles = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", written)]
        if len(tiles) >= 2 and "..." in written:
            (first_w, first_h), (last_w, last_h) = tiles[0], tiles[-1]
            tiles = [(i, j) for i in range(first_w, last_w + 1) for j in range(first_h, last_h + 1)]
        found = [(i * side, j * side) for i, j in tiles]
    else:
        found = _pairs(written)
    if not found:
        said = " lacks image_grid_pinpoints" if written is None else f": image_grid_pinpoints = {written!r} is no grid"
        raise InputError(
            f'config.json{said}: [[width, height], ...] in pixels is needed, or "(1x1),...,(6x6)" in tiles'
        )
    return found


def _pairs(written: object) -> list[tuple[int, int]]:
    """Empty if it is no list of pairs of numbers."""
    try:
        return [(int(width), int(height)) for width, height in written] if isinstance(written, list) else []
    except (TypeError, ValueError, OverflowError):
        return []

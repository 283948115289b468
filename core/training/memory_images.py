"""What a model makes of images that have a size and no content, for the planner of memory.

Shapes: B rows computed at once, F image features of a row, T tiles, P patches, D hidden size, S side of a tile.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from core.models.pretrained import PretrainedDenoiser
from core.models.tiling import TiledImages
from core.models.vision import QwenVision, SquareVision, TiledVision


def image_features(model: PretrainedDenoiser, size: tuple[int, int], rows: int) -> Tensor:
    """(B, F, D): those of an image of this (width, height) in each row, where no content decides about a size.

    Raises:
        InputError: the model has no eyes, such that are not planned, or that cannot see an image of this size.
    """
    match model.vision:
        case TiledVision() as tiled:
            return _of_tiles(tiled, size, rows, model.dtype)
        case SquareVision() as square:
            side = int(square.tower.config.image_size)
            pixels_BCSS = torch.zeros(rows, 3, side, side, dtype=model.dtype)
            features_BFD: Tensor = square.adapter(square.tower(pixels_BCSS).last_hidden_state)
            return features_BFD
        case QwenVision() as patched:
            return _of_patches(patched, size, rows)
    raise InputError("images: the memory of this model's eyes is not planned: give rows without an image")


def _of_tiles(vision: TiledVision, size: tuple[int, int], rows: int, dtype: torch.dtype) -> Tensor:
    """As the model's own tiling makes them, which asks for sizes alone."""
    grid_width, grid_height = vision.tiling.grid(*size)
    side = vision.tiling.side
    tiles = 1 + (grid_width // side) * (grid_height // side)
    pixels_TCSS = torch.zeros(rows * tiles, 3, side, side, dtype=dtype)
    seen = vision.features(TiledImages(tiles_TCSS=pixels_TCSS, counts=(tiles,) * rows, sizes=(size,) * rows))
    return seen.values_FD.view(rows, -1, seen.values_FD.shape[1])


def _of_patches(vision: QwenVision, size: tuple[int, int], rows: int) -> Tensor:
    """What the tower computes from images' grids is given to it: it would read sizes out of tensors' content.

    Windows are taken to be whole images: they are attended to in pieces, of which no more is kept.
    """
    tower = vision.tower
    config = tower.config
    merged = vision.positions(*size)
    patches = merged * int(config.spatial_merge_size) ** 2
    ends = np.arange(rows + 1) * patches  # no tensor: the tower asks it for its values
    given: dict[str, Any] = {
        "position_ids": torch.zeros(rows * patches, 2, dtype=torch.int64),
        "cu_seqlens": ends,
    }
    if hasattr(tower, "window_size"):
        given |= {"window_index": torch.zeros(rows * merged, dtype=torch.int64), "cu_window_seqlens": ends}
    width = int(config.in_channels) * int(config.temporal_patch_size) * int(config.patch_size) ** 2
    patches_PC = torch.zeros(rows * patches, width, dtype=next(tower.parameters()).dtype)
    seen_FD = tower(patches_PC, grid_thw=torch.zeros(rows, 3, dtype=torch.int64), **given).pooler_output
    features_BFD: Tensor = vision.adapter(seen_FD).view(rows, merged, -1)
    return features_BFD

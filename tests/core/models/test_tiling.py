import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.models.tiling import AnyRes, unpadded

SIDE, U = 56, 4
PINPOINTS = tuple((i * SIDE, j * SIDE) for i in range(1, 7) for j in range(1, 7))
CONFIG = {"image_aspect_ratio": "anyres_max_4", "mm_patch_merge_type": "spatial_unpad"}
SIZES = st.integers(1, 2000)


def any_res(max_tiles):
    return AnyRes(side=SIDE, pinpoints=PINPOINTS, max_tiles=max_tiles)


def best_by_hand(width, height):
    """The published search, as a loop."""
    best, most, least = None, 0, float("inf")
    for w, h in PINPOINTS:
        scale = min(w / width, h / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = w * h - effective
        if effective > most or (effective == most and waste < least):
            best, most, least = (w, h), effective, waste
    return best


@settings(max_examples=200, deadline=None)
@given(SIZES, SIZES)
def test_the_grid_is_that_of_the_published_search(width, height):
    assert any_res(4).grid(width, height) == (best_by_hand(width, height) or PINPOINTS[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from([None, 4]))
def test_every_size_gives_rows_that_end_in_a_newline(width, height, max_tiles):
    tiling = any_res(max_tiles)
    images = tiling.tile([np.zeros((height, width, 3), dtype=np.uint8)])
    (w, h), tiles = tiling.grid(width, height), images.counts[0]
    assert tiles == 1 + (w // SIDE) * (h // SIDE)
    newline = torch.full((2,), -1.0)
    arranged = tiling.arrange(torch.rand(tiles, U * U, 2), (width, height), newline)
    assert (arranged[: U * U] >= 0).all(), "the whole comes first, without a newline"
    ends = (arranged[U * U :, 0] == -1).nonzero()[:, 0]
    rows = len(ends)
    assert torch.equal(ends, (torch.arange(rows) + 1) * (len(arranged) - U * U) // rows - 1)
    if max_tiles is not None:
        assert len(arranged) - U * U - rows <= max_tiles * U * U * 1.21


def test_a_tile_stands_where_it_was_cut():
    tiling = any_res(None)
    image = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 3 * SIDE, 3), dtype=np.uint8)
    tiles = tiling.tile([image]).tiles_TCSS
    assert tiling.grid(3 * SIDE, 2 * SIDE) == (3 * SIDE, 2 * SIDE)
    second_row_third = torch.from_numpy(image[SIDE:, 2 * SIDE :]).permute(2, 0, 1) / 255 * 2 - 1
    assert torch.allclose(tiles[1 + 5], second_row_third, atol=1e-5)
    means = tiles.mean(1).unflatten(1, (U, SIDE // U)).unflatten(3, (U, SIDE // U)).mean((2, 4)).flatten(1)
    arranged = tiling.arrange(means[..., None], (3 * SIDE, 2 * SIDE), torch.zeros(1))[U * U :, 0].view(2 * U, 3 * U + 1)
    picture = torch.from_numpy(image).float().mean(2) / 255 * 2 - 1
    cells = picture.unflatten(0, (2 * U, -1)).unflatten(2, (3 * U, -1)).mean((1, 3))
    assert torch.allclose(arranged[:, :-1], cells, atol=1e-4)


def test_padding_is_cut_off_the_longer_side():
    grid = torch.zeros(1, 8, 12)
    assert unpadded(grid, (200, 100)).shape == (1, 6, 12)
    assert unpadded(grid, (100, 100)).shape == (1, 8, 8)
    assert unpadded(grid, (120, 80)).shape == (1, 8, 12)


@pytest.mark.parametrize("written", ["(1x1),...,(6x6)", [list(pair) for pair in PINPOINTS]])
def test_pinpoints_are_read_as_a_range_or_as_pixels(written):
    assert AnyRes.of(CONFIG | {"image_grid_pinpoints": written}, SIDE).pinpoints == PINPOINTS

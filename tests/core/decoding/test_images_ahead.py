import time

import numpy as np
import pytest

from core.decoding.ahead import Pictures, one_ahead
from core.errors import InputError, RowError, StoreError
from tests.clock import eventually
from tests.core.decoding.tiny import TinyDenoiser


def test_the_next_is_made_while_the_one_before_is_used_and_no_more():
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * item

    found = []
    for square in one_ahead(range(4), make):
        eventually(lambda: len(made) == min(len(found) + 2, 4))
        time.sleep(0.02)
        assert len(made) == min(len(found) + 2, 4), "no more"
        found.append(square)
    assert found == [0, 1, 4, 9]


def test_an_error_comes_with_its_own_item():
    def make(item: int) -> int:
        if item == 2:
            raise StoreError("gone")
        return item

    found = []
    with pytest.raises(StoreError, match="gone"):
        found.extend(one_ahead(range(4), make))
    assert list(one_ahead([], make)) == []


class Choosy(TinyDenoiser):
    """Refuses pictures of one row of pixels."""

    def pixels(self, images):
        if any(len(image) == 1 for image in images):
            raise InputError("too flat")
        return super().pixels(images)


def test_an_image_that_the_model_cannot_take_spoils_its_row_alone():
    def load(sha: str) -> np.ndarray:
        if sha == "lost":
            raise RowError("broken_image", "no header")
        return np.full((1 if sha == "flat" else 4, 4, 3), len(sha), dtype=np.uint8)

    unusable: dict[int, RowError] = {}
    pictures = Pictures(model=Choosy(), load_image=load, shas=["a", "flat", None, "lost", "bb"])
    batch = pictures.batch([4, 3, 2, 1, 0], unusable)
    assert (batch.rows, list(batch.images)) == ([4, 2, 0], [4, 0])
    assert batch.pixels[:, 0, 0].tolist() == [2, 1]
    assert {row: error.reason for row, error in unusable.items()} == {1: "unusable_image", 3: "broken_image"}

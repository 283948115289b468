"""Too little memory for a batch: half of it, and on; shown with a model that fails as CUDA does."""

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from core.decoding.room import Room
from core.decoding.settings import DecodeSettings
from core.drafting import Drafted, draft
from core.errors import InputError
from tests.core.decoding.tiny import TinyDenoiser
from tests.core.test_drafting import load_image, samples_of

SETTINGS = (DecodeSettings.parse("4 refine"), DecodeSettings.parse("3 freeze"))


class Cramped(TinyDenoiser):
    """Has memory for so many rows of a forward, and for so many images."""

    def __init__(self, rows: int, images: int = 99) -> None:
        super().__init__()
        self._rows, self._images = rows, images

    def hidden(self, ids_BL, **seen):
        if len(ids_BL) > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().hidden(ids_BL, **seen)

    def image_features(self, pixels):
        if len(pixels) > self._images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().image_features(pixels)


class Narrow(TinyDenoiser):
    """Its device cannot hold the pixels of so many images."""

    def pixels(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().pixels(images)


def drafted(model, room: Room, samples: pl.DataFrame | None = None) -> Drafted:
    return draft(
        model,
        samples_of() if samples is None else samples,
        SETTINGS,
        load_image=load_image,
        response_length=12,
        batch_size=8,
        round_index=0,
        model_digest="x",
        trace_samples=2,
        room=room,
    )


def test_too_little_memory_halves_the_batch_and_changes_no_token():
    told: list[str] = []
    room, model = Room(tell=told.append), Cramped(rows=3)
    found, expected = drafted(model, room), drafted(TinyDenoiser(), Room())
    assert_frame_equal(found.drafts, expected.drafts)
    assert_frame_equal(found.traces, expected.traces)
    assert (room.halvings, room.rows) == (2, 2)
    assert told == [
        "out of memory with 8 rows: 4 at a time from here on",
        "out of memory with 4 rows: 2 at a time from here on",
    ]
    assert max(model.rows_seen) == 2


@pytest.mark.parametrize("model", [Cramped(rows=99, images=2), Narrow()])
def test_too_little_memory_for_images_halves_the_batch_too(model):
    room = Room()
    assert_frame_equal(drafted(model, room).drafts, drafted(TinyDenoiser(), Room()).drafts)
    assert (room.halvings, room.rows) == (2, 2)


def test_what_did_not_fit_is_not_tried_again():
    model = Cramped(rows=4)
    room = Room()
    drafted(model, room)
    assert room.halvings == 1
    drafted(model, room)
    assert room.halvings == 1


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"too small for one row \(CUDA out of memory\.\).*bf16"):
        drafted(Cramped(rows=0), Room())


def test_pieces_keep_the_order_and_leave_nothing_out():
    def work(rows: list[int]) -> int:
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no")
        return sum(rows)

    for count in range(12):
        rows = np.random.default_rng(count).permutation(count).tolist()
        pieces = list(Room().pieces(rows, work))
        assert [row for piece, _ in pieces for row in piece] == rows
        assert all(total == sum(piece) for piece, total in pieces)

import threading

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.corruption import blocks
from core.corruption.blocks import over_blocks
from core.corruption.mask import mask_rows
from core.corruption.parts import in_parts
from core.corruption.revision import revision_rows
from core.corruption.settings import MaskSettings, RevisionSettings
from tests.core.corruption.tables import LENGTH, TOKENIZER, pair, pairs_of, sample, samples_of, world

SAMPLES, PAIRS = world()


def revise(samples, pairs):
    return revision_rows(
        samples, pairs, TOKENIZER, response_length=LENGTH, seed=0, settings=RevisionSettings(draws=3, syntax_rate=0.5)
    )


@pytest.mark.parametrize(("rows", "row_length"), [(0, 5), (1, 5), (1000, 128), (10, 0), (7, 2**20)])
def test_blocks_make_up_all_rows(rows, row_length):
    seen = np.zeros(rows, dtype=np.int64)

    def count(block):
        seen[block] += 1

    over_blocks(rows, row_length, count)
    assert (seen == 1).all()


def test_an_error_in_a_block_is_raised_and_no_thread_stays():
    before = threading.active_count()

    def fail(block):
        raise ZeroDivisionError(str(block.start))

    with pytest.raises(ZeroDivisionError):
        over_blocks(10**6, 128, fail)
    assert threading.active_count() == before


@pytest.mark.parametrize("tokens", [1, 64, 10**6])
def test_the_size_of_a_block_changes_no_row(tokens, monkeypatch):
    mixed = pl.concat([SAMPLES, samples_of(*(sample(i, "a ring", prompt="the image") for i in range(900, 950)))])
    settings = MaskSettings(draws=2, fill="ignore")

    def rows():
        masked = mask_rows(mixed, TOKENIZER, response_length=LENGTH, seed=0, settings=settings)
        return masked.examples, revise(mixed, PAIRS).examples

    expected = rows()
    monkeypatch.setattr(blocks, "_TOKENS_A_BLOCK", tokens)
    for frame, other in zip(expected, rows(), strict=True):
        assert_frame_equal(frame, other)


def test_parts_give_the_rows_and_the_account_of_the_whole():
    stray = pairs_of(
        pair(0, sample(5000, "a red ring"), "red", "blue"), pair(1, sample(0, "a red ring"), "red", "the red")
    )
    pairs = pl.concat([PAIRS, stray])
    whole = revise(SAMPLES, pairs)
    parts = [revise(*part) for part in in_parts(SAMPLES, pairs, size=70)]
    assert len(parts) == 5
    assert_frame_equal(pl.concat([part.examples for part in parts]), whole.examples)
    assert (sum(part.rows_in for part in parts), sum(part.rows_ok for part in parts)) == (whole.rows_in, whole.rows_ok)
    rejects = pl.concat([part.rejects for part in parts])
    assert_frame_equal(rejects, whole.rejects, check_row_order=False)
    assert set(rejects["reason"]) == {"sample_missing", "caption_mismatch"}


@pytest.mark.parametrize("size", [300, 301])
def test_what_fits_into_one_part_is_left_as_it_is(size):
    ((samples, pairs),) = in_parts(SAMPLES, PAIRS, size=size)
    assert samples is SAMPLES
    assert pairs is PAIRS
    assert [part.height for part, _ in in_parts(SAMPLES.clear(), PAIRS, size=size)] == [0]

"""What an evaluation keeps of its work."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.corruption.rows import reject_frame
from core.drafting import ANSWER_COLUMNS, Answered
from tasks.evaluate import once

ROWS = {
    "sample_id": ["a", "b"], "setting": ["8 refine"] * 2, "policy": ["refine"] * 2, "tokens_per_step": [8] * 2,
    "extra_steps": [0] * 2, "nfe": [6, 5], "text": ["a red ring", ""],
}  # fmt: skip
FOUND = Answered(
    answers=pl.DataFrame(ROWS, schema=ANSWER_COLUMNS),
    rejects=reject_frame(["c/8 refine"], ["bad_image"], ["it is none"]),
    seconds={"8 refine": 1.25},
)


def test_a_setting_that_was_answered_before_a_crash_is_not_answered_again(tmp_path):
    calls = []

    def answered() -> Answered:
        calls.append(1)
        return FOUND

    once(tmp_path / "setting-0", answered)
    again = once(tmp_path / "setting-0", answered)
    assert len(calls) == 1
    assert_frame_equal(again.answers, FOUND.answers)
    assert_frame_equal(again.rejects, FOUND.rejects)
    assert again.seconds == FOUND.seconds


def test_a_setting_whose_answers_were_cut_off_is_answered_again(tmp_path):
    def cut() -> Answered:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "setting-0", cut)
    assert once(tmp_path / "setting-0", lambda: FOUND) is FOUND

import polars as pl

from core.metrics.traces import repair_of, stability_of, steps_of
from data_contracts import Drafts

M = 9
WRITES = {
    # position 0: 1 -> 2 -> 1 (an oscillation); position 1: 3 -> M -> 3 (re-masked and back: no oscillation of tokens)
    "x": [(0, 0, 1), (0, 1, 3), (1, 0, 2), (1, 1, M), (2, 0, 1), (2, 1, 3)],
    # position 0 settles at once, position 1 is corrected at step 1
    "y": [(0, 0, 1), (0, 1, 4), (1, 1, 5)],
}


def drafts() -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "draft_id": list(WRITES),
            "setting": ["s", "s"],
            "nfe": [3, 3],
            "writes": [
                [{"step": step, "position": position, "token": token} for step, position, token in writes]
                for writes in WRITES.values()
            ],
        }
    )
    return frame.with_columns(pl.col("writes").cast(Drafts.writes.dtype))


def test_counts_per_step_are_means_over_drafts() -> None:
    assert steps_of(drafts(), mask_id=M).rows() == [
        ("s", 0, 2.0, 0.0, 0.0),
        ("s", 1, 0.0, 1.0, 0.5),
        ("s", 2, 0.5, 0.5, 0.0),
    ]


def test_oscillation_ignores_masks_and_fixed_points_need_a_forward_that_confirms() -> None:
    rows = {row["draft_id"]: row for row in stability_of(drafts(), mask_id=M).iter_rows(named=True)}
    assert (rows["x"]["overwritten"], rows["x"]["oscillations"]) == (3, 1)
    assert (rows["x"]["last_change"], rows["x"]["fixed_point"]) == (3, False)
    assert (rows["y"]["overwritten"], rows["y"]["oscillations"]) == (1, 0)
    assert (rows["y"]["last_change"], rows["y"]["fixed_point"]) == (2, True)


def test_repair_and_harm_compare_the_first_token_with_the_last() -> None:
    targets = pl.DataFrame({"draft_id": ["x", "y"], "target_ids": [[1, 7], [1, 5]]}).with_columns(
        pl.col("target_ids").cast(pl.List(pl.Int32))
    )
    # right at first: x0, y0, both right at the end; wrong at first: x1 (stays wrong), y1 (repaired)
    assert repair_of(drafts(), targets, mask_id=M).rows() == [("s", 0.5, 0.0)]
    # now x1 and y1 are right at first, and y1 is spoiled
    spoiled = targets.with_columns(pl.Series("target_ids", [[2, 3], [2, 4]], dtype=pl.List(pl.Int32)))
    assert repair_of(drafts(), spoiled, mask_id=M).rows() == [("s", 0.0, 0.5)]

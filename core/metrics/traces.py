"""What the log of a decoding shows without aligning texts: how much changes when, and whether it settles.

METHODS: repair, harm, oscillation (A, B, A with the mask ignored), time to fixed point. All read `Drafts.writes`.
"""

import polars as pl


def writes_of(drafts: pl.DataFrame, *, mask_id: int) -> pl.DataFrame:
    """One row a write: draft_id, setting, step, position, token and old (the mask at first), in order."""
    exploded = drafts.select("draft_id", "setting", "writes").explode("writes").unnest("writes")
    old = pl.col("token").shift(1).over("draft_id", "position").fill_null(mask_id)
    return exploded.with_columns(old.alias("old"))


def steps_of(drafts: pl.DataFrame, *, mask_id: int) -> pl.DataFrame:
    """Per setting and step, means over the setting's drafts: tokens `revealed`, `overwritten` and `remasked`.

    What was given at the start (step -1) is left out.
    """
    sizes = drafts.group_by("setting").len("drafts")
    old, new = pl.col("old"), pl.col("token")
    return (
        writes_of(drafts, mask_id=mask_id)
        .filter(pl.col("step") >= 0)
        .group_by("setting", "step")
        .agg(
            (old == mask_id).sum().alias("revealed"),
            ((old != mask_id) & (new != mask_id)).sum().alias("overwritten"),
            (new == mask_id).sum().alias("remasked"),
        )
        .join(sizes, on="setting")
        .select(
            "setting", "step", *(pl.col(name) / pl.col("drafts") for name in ("revealed", "overwritten", "remasked"))
        )
        .sort("setting", "step")
    )


def stability_of(drafts: pl.DataFrame, *, mask_id: int) -> pl.DataFrame:
    """One row a draft: draft_id, setting, overwritten, oscillations, last_change, fixed_point.

    oscillations: writes of a token that stood there before the last one (A, B, A; masks ignored). last_change: forwards
    after which the response stayed as it is. fixed_point: whether a forward confirmed it, i.e. last_change < nfe.
    """
    shown = writes_of(drafts, mask_id=mask_id).filter(pl.col("token") != mask_id)
    earlier = [pl.col("token").shift(back).over("draft_id", "position") for back in (1, 2)]
    per_draft = (
        shown.with_columns(earlier[0].alias("before"), earlier[1].alias("twice_before"))
        .group_by("draft_id")
        .agg(
            pl.col("before").is_not_null().sum().alias("overwritten"),
            ((pl.col("token") == pl.col("twice_before")) & (pl.col("token") != pl.col("before")))
            .sum()
            .alias("oscillations"),
            (pl.col("step").cast(pl.Int32).max() + 1).alias("last_change"),
        )
    )
    return (
        drafts.select("draft_id", "setting", "nfe")
        .join(per_draft, on="draft_id", how="left", maintain_order="left")
        .with_columns((pl.col("last_change") < pl.col("nfe")).alias("fixed_point"))
        .drop("nfe")
    )


def repair_of(drafts: pl.DataFrame, targets: pl.DataFrame, *, mask_id: int) -> pl.DataFrame:
    """Per setting: `repair` = P(right at the end | wrong when revealed), `harm` = P(wrong at the end | right then).

    targets: draft_id and target_ids, equally long as the response and comparable position by position (a revision of
    the same draft, or a reference where the draft has its wording). Null where nothing was wrong, or nothing right.
    """
    wanted = (
        targets.select("draft_id", pl.col("target_ids").alias("target"))
        .with_columns(pl.int_ranges(pl.col("target").list.len(), dtype=pl.Int32).alias("position"))
        .explode("target", "position")
    )
    first, last, target = pl.col("first"), pl.col("last"), pl.col("target")
    return (
        writes_of(drafts, mask_id=mask_id)
        .filter(pl.col("token") != mask_id)
        .group_by("setting", "draft_id", "position", maintain_order=True)
        .agg(pl.col("token").first().alias("first"), pl.col("token").last().alias("last"))
        .join(wanted, on=["draft_id", "position"])
        .group_by("setting")
        .agg(
            (last == target).filter(first != target).mean().alias("repair"),
            (last != target).filter(first == target).mean().alias("harm"),
        )
        .sort("setting")
    )

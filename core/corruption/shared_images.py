"""Captions of one image that lie in different parts of a dataset: what one of them says, the others must know."""

from collections.abc import Callable, Iterator

import polars as pl

Parts = Callable[[], Iterator[pl.DataFrame]]
"""Begins anew with each call."""


def shared_captions(parts: Parts) -> pl.DataFrame:
    """(part, image_sha, reference) of the images that more than one part has captions of; memory is that of those."""
    pieces = [
        frame.select(pl.lit(index, dtype=pl.Int32).alias("part"), "image_sha").drop_nulls().unique()
        for index, frame in enumerate(parts())
    ]
    counted = pl.concat(pieces).group_by("image_sha").len() if pieces else pl.DataFrame(schema={"image_sha": pl.String})
    wanted = counted.filter(pl.col("len") > 1).select("image_sha") if pieces else counted
    found = [pl.DataFrame(schema={"part": pl.Int32, "image_sha": pl.String, "reference": pl.String})]
    if wanted.height:
        for index, frame in enumerate(parts()):
            theirs = frame.join(wanted, on="image_sha", how="semi", maintain_order="left")
            found.append(theirs.select(pl.lit(index, dtype=pl.Int32).alias("part"), "image_sha", "reference"))
    return pl.concat(found)


def elsewhere(shared: pl.DataFrame, part: int, samples: pl.DataFrame) -> pl.DataFrame:
    """Of `shared_captions` those of the images of `samples` that are not in this part."""
    return shared.filter(pl.col("part") != part).join(samples.select("image_sha").unique(), on="image_sha", how="semi")

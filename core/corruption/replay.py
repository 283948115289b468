"""Replay: a share of Stage I rows among those of Stage II, so that what was learned there is kept."""

import numpy as np
import polars as pl

from core.errors import InputError
from core.seeds import rng


def mix_replay(refined: pl.DataFrame, replayed: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """TrainingExamples of which a share is replayed: all of `refined`, then rows drawn from `replayed`.

    Rows are drawn without replacement until all are used, then again; a row drawn again has "~1", "~2", ... after its
    id. With 300 refined rows and share 0.25, 100 are replayed.

    Raises:
        InputError: share outside [0, 1), or nothing to replay.
    """
    if not 0.0 <= share < 1.0:
        raise InputError(f"the replayed share must be at least 0 and below 1, not {share}")
    count = round(refined.height * share / (1.0 - share))
    if count == 0:
        return refined
    if replayed.height == 0:
        raise InputError("there are no rows to replay: set the replayed share to 0, or give Stage I rows")
    again = np.arange(count) // replayed.height
    passes = [rng("replay", seed, turn).permutation(replayed.height) for turn in range(int(again[-1]) + 1)]
    drawn = replayed[np.concatenate(passes)[:count]]
    example_id = pl.when(pl.Series(again) > 0).then(pl.format("{}~{}", "example_id", pl.Series(again)))
    return pl.concat([refined, drawn.with_columns(example_id.otherwise("example_id").alias("example_id"))])

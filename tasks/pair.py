"""Samples -> captions with exactly one fact made wrong: by the scene grammar, by a lexicon, or by the expert."""

from collections import Counter

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.config import PairSettings
from core.corruption.caption_pairs import make_caption_pairs
from core.corruption.hallucination import MadePairs, make_pairs
from core.corruption.invented_pairs import InventedPairs, invent_pairs
from core.corruption.shared_images import elsewhere, shared_captions
from core.expert.settings import ExpertSettings
from core.manifest import Ref, read_parts
from core.settings import Settings
from core.stage import Output
from data_contracts import HallucinationPairs, Samples
from tasks.revise import client_of
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class PairConfig(Settings):
    """What decides which pairs are made."""

    pair: PairSettings
    seed: int
    scenes: bool
    """Are the captions those of the scene world? They are changed by its grammar, all others by a lexicon."""
    expert: dict[str, str | int | float | None] | None = None
    """What decides the expert's answers, where it is asked."""

    @classmethod
    def of(cls, pair: PairSettings, expert: ExpertSettings, *, seed: int, scenes: bool) -> "PairConfig":
        """Address, key, patience and prices of the expert are not in it: they change nothing that is said."""
        asked = expert.model_dump(include={"model", "structured", "temperature", "max_tokens"})
        asked |= expert.model_dump(include={"image_max_side", "image_max_bytes"}, exclude_none=True)
        return cls(pair=pair, seed=seed, scenes=scenes, expert=asked if pair.by == "expert" else None)


@task(cache_policy=NO_CACHE, task_run_name="pair")
def pair(place: Workplace, config: PairConfig, expert: ExpertSettings, samples: Ref, *, parent: str) -> State:
    """Samples -> HallucinationPairs. A sample without any pair is counted."""

    def compute(output: Output) -> None:
        rows_in = dropped = 0
        used: Counter[str] = Counter()
        parts = lambda: read_parts(place.store, samples, Samples)  # noqa: E731 - begins anew with each call
        shared = shared_captions(parts)
        for index, part in enumerate(parts()):
            made = _pairs(place, config, expert, part, elsewhere(shared, index, part))
            output.write(HallucinationPairs, made.pairs, part=f"{index:08d}", counted=False)
            output.reject_frame(made.rejects)
            rows_in, dropped = rows_in + part.height, dropped + made.rejects.height
            used.update(_usage(made))
            output.progress(rows_in, None, {})
        output.commit(rows_in=rows_in, ok=rows_in - dropped, facts=dict(used))

    stage = stage_of("pair", config, {"samples": [samples]})
    return run(place, stage, compute, parent=parent, retry_failed=place.retry_failed)


def _pairs(
    place: Workplace, config: PairConfig, expert: ExpertSettings, samples: pl.DataFrame, others: pl.DataFrame
) -> MadePairs | InventedPairs:
    how, seed = config.pair, config.seed
    if how.by == "expert":
        client = client_of(place, expert)
        return invent_pairs(
            samples, client=client, load_image=place.image_bytes, seed=seed, kinds=how.kinds, elsewhere=others
        )
    if config.scenes:
        return make_pairs(samples, per_sample=how.per_sample, seed=seed, kinds=how.kinds)
    return make_caption_pairs(
        samples, per_sample=how.per_sample, seed=seed, kinds=how.kinds, balance=how.balance, elsewhere=others
    )


def _usage(made: MadePairs | InventedPairs) -> dict[str, float]:
    """Tokens and cost of the expert's replies, as far as they are known."""
    names = ("prompt_tokens", "completion_tokens", "cost_usd")
    return {name: value for name in names if (value := getattr(made, name, None)) is not None}

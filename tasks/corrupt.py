"""Clean captions into what the model sees: hallucination pairs, masked rows, revision rows."""

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.config import PairSettings
from core.corruption.caption_pairs import make_caption_pairs
from core.corruption.hallucination import MadePairs, make_pairs
from core.corruption.mask import mask_rows
from core.corruption.revision import revision_rows
from core.corruption.rows import Corrupted
from core.corruption.settings import MaskSettings, RevisionSettings
from core.manifest import Ref, read_parts, read_table
from core.models.tokenizer import load_tokenizer
from core.settings import Settings
from core.stage import Output
from data_contracts import HallucinationPairs, Samples, TrainingExamples
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class PairConfig(Settings):
    """What decides which pairs are made."""

    pair: PairSettings
    seed: int
    scenes: bool
    """Are the captions those of the scene world? They are changed by its grammar, all others by a lexicon."""


class MaskConfig(Settings):
    """What decides what is masked."""

    mask: MaskSettings
    response_length: int
    seed: int


class RevisionConfig(Settings):
    """What decides what is corrupted for stage 1."""

    revision: RevisionSettings
    response_length: int
    seed: int


@task(cache_policy=NO_CACHE, task_run_name="pair")
def pair(place: Workplace, config: PairConfig, samples: Ref, *, parent: str) -> State:
    """Samples -> captions with exactly one fact made wrong. A sample without any pair is a counted reject."""

    def compute(output: Output) -> None:
        rows_in = rejected = 0
        for index, part in enumerate(read_parts(place.store, samples, Samples)):
            made = _pairs(part, config)
            output.write(HallucinationPairs, made.pairs, part=f"{index:08d}", counted=False)
            output.reject_frame(made.rejects)
            rows_in, rejected = rows_in + part.height, rejected + made.rejects.height
            output.progress(rows_in, None, {})
        output.commit(rows_in=rows_in, ok=rows_in - rejected)

    stage = stage_of("pair", config, {"samples": [samples]})
    return run(place, stage, compute, parent=parent)


def _pairs(samples: pl.DataFrame, config: PairConfig) -> MadePairs:
    how = config.pair
    if config.scenes:
        return make_pairs(samples, per_sample=how.per_sample, seed=config.seed, kinds=how.kinds)
    return make_caption_pairs(
        samples, per_sample=how.per_sample, seed=config.seed, kinds=how.kinds, balance=how.balance
    )


@task(cache_policy=NO_CACHE, task_run_name="mask")
def mask(place: Workplace, config: MaskConfig, tokenizer: Ref, samples: Ref, *, parent: str) -> State:
    """Samples -> masked training examples (eq. 2), in the tokens of the checkpoint `tokenizer`."""

    def compute(output: Output) -> None:
        _write(
            output,
            mask_rows(
                read_table(place.store, samples, Samples),
                load_tokenizer(place.local_folder(tokenizer)),
                response_length=config.response_length,
                seed=config.seed,
                settings=config.mask,
            ),
        )

    stage = stage_of("mask", config, {"tokenizer": [tokenizer], "samples": [samples]})
    return run(place, stage, compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="corrupt")
def corrupt(
    place: Workplace, config: RevisionConfig, tokenizer: Ref, samples: Ref, pairs: Ref | None, *, parent: str
) -> State:
    """Samples and their pairs -> corrupted training examples (eq. 3 and 4), in the tokens of `tokenizer`."""

    def compute(output: Output) -> None:
        _write(
            output,
            revision_rows(
                read_table(place.store, samples, Samples),
                read_table(place.store, [pairs] if pairs else [], HallucinationPairs),
                load_tokenizer(place.local_folder(tokenizer)),
                response_length=config.response_length,
                seed=config.seed,
                settings=config.revision,
            ),
        )

    inputs = {"tokenizer": [tokenizer], "samples": [samples], "pairs": [pairs] if pairs else []}
    return run(place, stage_of("corrupt", config, inputs), compute, parent=parent)


def _write(output: Output, corrupted: Corrupted) -> None:
    output.write(TrainingExamples, corrupted.examples, counted=False)
    output.reject_frame(corrupted.rejects)
    output.commit(rows_in=corrupted.rows_in, ok=corrupted.rows_ok, facts={"examples": corrupted.examples.height})

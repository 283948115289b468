"""Clean captions into what the model sees: masked rows, revision rows."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.corruption.mask import mask_rows
from core.corruption.revision import revision_rows
from core.corruption.rows import Corrupted
from core.corruption.settings import MaskSettings, RevisionSettings
from core.manifest import Ref, read_table
from core.models.tokenizer import load_tokenizer
from core.settings import Settings
from core.stage import Output
from data_contracts import HallucinationPairs, Samples, TrainingExamples
from tasks.running import run, stage_of
from tasks.workplace import Workplace


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


@task(cache_policy=NO_CACHE, task_run_name="mask")
def mask(place: Workplace, config: MaskConfig, tokenizer: Ref, samples: Sequence[Ref], *, parent: str) -> State:
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

    stage = stage_of("mask", config, {"tokenizer": [tokenizer], "samples": samples})
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

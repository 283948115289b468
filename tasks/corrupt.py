"""Clean captions into what the model sees: masked rows, revision rows."""

from collections.abc import Iterable, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.corruption.mask import mask_rows
from core.corruption.parts import in_parts
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
        table, vocabulary = read_table(place.store, samples, Samples), load_tokenizer(place.local_folder(tokenizer))
        _write(
            output,
            (
                mask_rows(
                    part, vocabulary, response_length=config.response_length, seed=config.seed, settings=config.mask
                )
                for part, _ in in_parts(table, HallucinationPairs.create_empty())
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
        table, vocabulary = read_table(place.store, samples, Samples), load_tokenizer(place.local_folder(tokenizer))
        wrong = read_table(place.store, [pairs] if pairs else [], HallucinationPairs)
        _write(
            output,
            (
                revision_rows(
                    part,
                    of_part,
                    vocabulary,
                    response_length=config.response_length,
                    seed=config.seed,
                    settings=config.revision,
                )
                for part, of_part in in_parts(table, wrong)
            ),
        )

    inputs = {"tokenizer": [tokenizer], "samples": [samples], "pairs": [pairs] if pairs else []}
    return run(place, stage_of("corrupt", config, inputs), compute, parent=parent)


def _write(output: Output, parts: Iterable[Corrupted]) -> None:
    rows_in, ok, examples = 0, 0, 0
    for number, corrupted in enumerate(parts):
        output.write(TrainingExamples, corrupted.examples, part=f"{number:05d}", counted=False)
        output.reject_frame(corrupted.rejects)
        rows_in, ok = rows_in + corrupted.rows_in, ok + corrupted.rows_ok
        examples += corrupted.examples.height
    output.commit(rows_in=rows_in, ok=ok, facts={"examples": examples})

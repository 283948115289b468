"""How good a model's answers are: one arm over one split, at every decoder setting."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.config import RunConfig
from core.decoding.settings import DecodeSettings
from core.drafting import Answered, answer, in_order
from core.manifest import Ref, read_table
from core.metrics.facts import measure, summarize
from core.metrics.overlap import overlap_f1
from core.settings import Settings
from core.stage import Output
from data_contracts import Evaluations, Samples
from tasks.compute import draft_on
from tasks.running import aloud, run, stage_of
from tasks.workplace import Workplace


class EvaluateConfig(Settings):
    """What decides an arm's numbers."""

    arm: str
    settings: tuple[str, ...]
    first: int | None = None
    """Answer only so many of the samples; None: all."""
    batch_size: int
    response_length: int
    seed: int

    @classmethod
    def of(
        cls, config: RunConfig, arm: str, settings: tuple[str, ...], *, first: int | None = None
    ) -> "EvaluateConfig":
        """An arm in these settings, in the way of a run's configuration."""
        return cls(
            arm=arm,
            settings=settings,
            first=first,
            batch_size=config.evaluate.batch_size,
            response_length=config.model.response_length,
            seed=config.seed,
        )


@task(cache_policy=NO_CACHE, task_run_name="evaluate {config.arm}")
def evaluate(place: Workplace, config: EvaluateConfig, model: Ref, samples: Ref, *, threads: int, parent: str) -> State:
    """Samples -> answers of `model` with their metrics; the summary of each setting is among the manifest's facts."""

    def compute(output: Output) -> None:
        rows = read_table(place.store, samples, Samples).slice(0, config.first)
        answered = [
            once(
                output.work / f"setting-{number}", partial(_answer, place, config, model, rows, number, threads, output)
            )
            for number in range(len(config.settings))
        ]
        answers = pl.concat([one.answers for one in answered])
        measured = measure_answers(in_order(answers, rows, _parsed(config)), rows, config.arm)
        seconds = {name: value for one in answered for name, value in one.seconds.items()}
        summaries = by_setting(measured, config.seed)
        facts = {name: summary | {"seconds": seconds[name]} for name, summary in summaries.items()}
        output.write(Evaluations, measured)
        for one in answered:
            output.reject_frame(one.rejects)
        output.commit(rows_in=rows.height * len(config.settings), facts={"settings": facts})

    stage = stage_of("evaluate", config, {"model": [model], "samples": [samples]})
    return run(place, stage, compute, parent=parent)


def _parsed(config: EvaluateConfig) -> list[DecodeSettings]:
    return [DecodeSettings.parse(name) for name in config.settings]


def _answer(
    place: Workplace,
    config: EvaluateConfig,
    model: Ref,
    rows: pl.DataFrame,
    number: int,
    threads: int,
    output: Output,
) -> Answered:
    """The answers in one setting, told as a part of all."""
    before, total = rows.height * number, rows.height * len(config.settings)
    return draft_on(
        place,
        model,
        answer,
        rows,
        threads=threads,
        tell=aloud(output),
        on_progress=lambda done, _: output.progress(before + done, total, {}),
        settings=[_parsed(config)[number]],
        response_length=config.response_length,
        batch_size=config.batch_size,
    ).result


def once(folder: Path, answered: Callable[[], Answered]) -> Answered:
    """What was answered before a crash, else what is answered now, kept in `folder`: a large model takes an hour."""
    done = folder / "answers.parquet"
    if done.is_file():
        return Answered(
            answers=pl.read_parquet(done),
            rejects=pl.read_parquet(folder / "rejects.parquet"),
            seconds=json.loads((folder / "seconds.json").read_text()),
        )
    found = answered()
    folder.mkdir(exist_ok=True)
    found.rejects.write_parquet(folder / "rejects.parquet")
    (folder / "seconds.json").write_text(json.dumps(found.seconds))
    found.answers.write_parquet(folder / "draft")
    (folder / "draft").replace(done)
    return found


def measure_answers(answers: pl.DataFrame, samples: pl.DataFrame, arm: str) -> pl.DataFrame:
    """The Evaluations rows of answers: exact facts where the reference describes a scene, word overlap everywhere."""
    texts = answers.join(samples.select("sample_id", "reference"), on="sample_id", maintain_order="left")
    pairs = texts.select("reference", "text").rows()
    metrics = pl.DataFrame(
        [measure(reference, text) | {"overlap_f1": overlap_f1(reference, text)} for reference, text in pairs]
    )
    rows = pl.concat([texts.drop("reference"), metrics], how="horizontal").with_columns(arm=pl.lit(arm))
    return rows.select(pl.col(name).cast(dtype) for name, dtype in Evaluations.create_empty().schema.items())


def by_setting(evaluations: pl.DataFrame, seed: int) -> dict[str, dict[str, float | int | None]]:
    """The summary of each decoder setting, in order of appearance."""
    parts = evaluations.partition_by("setting", maintain_order=True, as_dict=True)
    return {str(name): summarize(part, seed=seed) for (name,), part in parts.items()}

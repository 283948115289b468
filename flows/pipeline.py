"""The flow `redraft`: the whole loop, once. Foundation, baseline, rounds of self-correction, evaluation, report."""

import time
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from core.config import RunConfig, parse_config
from core.errors import ServerError
from core.manifest import Ref, read_manifest
from core.settings import Settings
from core.slices import shorten_slice, take_slice
from flows.evaluation import evaluation
from flows.foundation import Foundation, StageOne, foundation, samples_of, stage_one
from flows.gathering import only
from flows.lost_runs import end_as_failed, note_process
from flows.remembered import Beginning, hold_start, remember
from flows.reporting import publish
from flows.self_correction import Round, evaluate_dev, self_correction
from tasks.corrupt import MaskConfig, mask
from tasks.finetune import FinetuneConfig, finetune
from tasks.promote import beats, promote, register
from tasks.rounds import close_round, open_pipeline, open_round
from tasks.workplace import Workplace

NO_CHAMPION = "MLflow did not answer at the end: no champion was chosen. `redraft rerun` does it when MLflow is back."


class RunResult(Settings):
    """What a run left behind, for summary, report and `--json`."""

    run: str
    kind: Literal["run", "scheduled"] = "run"
    config: RunConfig
    started: datetime
    seconds: float
    ground: Foundation
    replay: Ref
    baseline: Ref | None = None
    rounds: tuple[Round, ...] = ()
    arms: dict[str, Ref] = Field(default_factory=dict)
    """Arm -> model."""
    evaluations: dict[str, Ref] = Field(default_factory=dict)
    """Arm -> its test results."""
    champion: str = ""
    notes: tuple[str, ...] = ()


@flow(
    name="redraft",
    flow_run_name="{run}",
    on_failure=[end_as_failed],
    on_crashed=[end_as_failed],
    on_cancellation=[end_as_failed],
)
def redraft_run(config: dict[str, Any], place: dict[str, Any], run: str, command: str = "") -> str:
    """One run of the loop from nothing: returns the path of its summary."""
    note_process()
    began, started = time.monotonic(), datetime.now(UTC)
    settings, here = parse_config(config, f"run {run}"), Workplace.model_validate(place).for_run(run)
    parent = open_pipeline(here, run, {"redraft.run": run, "redraft.config": settings.name}, config)
    beside = settings.compute.beside  # the baseline trains next to stage 1 and the rounds
    first = open_round(here, "foundation", parent)
    ground = foundation(settings, here, first)
    baseline = finetune.submit(
        here,
        *control_of(settings, here, ground, parent),
        threads=beside,
        processes=settings.compute.processes,
        parent=parent,
    )
    if settings.compute.one_at_a_time:
        baseline.wait()
    start = stage_one(settings, here, ground, beside, first)
    close_round(here, first)
    rounds = self_correction(settings, here, ground, start, ground.used, parent)
    arms = {"base": ground.base, "stage 1": start.model}
    arms |= {f"round {one.number}": one.model for one in rounds}
    free = settings.compute.threads if baseline.state.is_final() else beside
    measured = evaluation(settings, here, arms, ground.test, parent, cores=free)
    arms["mask-predict"] = only(baseline, "baseline")
    last = {"mask-predict": arms["mask-predict"]}
    measured |= evaluation(settings, here, last, ground.test, parent, cores=settings.compute.threads)
    champion = choose_champion(settings, here, ground, start.model, rounds, parent)
    result = RunResult(
        run=run, config=settings, started=started, seconds=time.monotonic() - began, ground=ground, replay=start.rows,
        baseline=arms["mask-predict"], rounds=rounds, arms=arms, evaluations=measured, champion=champion,
        notes=[*notes_on(rounds, settings), *([] if champion else [NO_CHAMPION])],
    )  # fmt: skip
    return str(publish(here, result, parent, command))


def firing_name() -> str:
    """The name of a scheduled run, e.g. 'scenes-20260102-020000-1f2e3d': what it leaves behind can be found by it.

    A run that is taken up again keeps its name.
    """
    if flow_run.run_count:
        return str(flow_run.name)
    return f"{flow_run.parameters['name']}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{flow_run.id[-6:]}"


@flow(
    name="redraft-scheduled",
    flow_run_name=firing_name,
    on_failure=[end_as_failed],
    on_crashed=[end_as_failed],
    on_cancellation=[end_as_failed],
)
def redraft_scheduled(config: dict[str, Any], place: dict[str, Any], name: str) -> State:
    """One firing of a schedule: rounds from the champion on the next unused samples; says so if there are none.

    The state's data is the path of the summary, or None.
    """
    note_process()
    settings, run = parse_config(config, name), str(flow_run.name)
    here = Workplace.model_validate(place).for_run(run)
    remember(here.home, run, Beginning(kind="scheduled", config=settings))
    parent = open_pipeline(here, run, {"redraft.run": run, "redraft.config": settings.name}, config)
    return _next_rounds(settings, here, run, parent)


def _next_rounds(settings: RunConfig, here: Workplace, run: str, parent: str) -> State:
    began, started = time.monotonic(), datetime.now(UTC)
    first = open_round(here, "foundation", parent)
    ground = foundation(settings, here, first)
    first_model = stage_one(settings, here, ground, settings.compute.threads, first)
    close_round(here, first)
    source, limit = _source(settings, here, ground)
    slice_ = _next_slice(settings, here, ground.used, run, source, limit)
    if slice_ is None:
        here.tracker.finish(parent, "FINISHED")
        return Completed(name="NothingNew", message="every sample has been used: there is nothing new to learn from")
    model = hold_start(here.home, run, champion_of(settings, here) or first_model.model)
    start, fitted = StageOne(rows=first_model.rows, model=model), _fitted(settings, slice_)
    rounds = self_correction(fitted, here, ground, start, slice_[0], parent)
    used = slice_[0] + len(rounds) * fitted.rounds.samples
    shorten_slice(here.engine, source=source, run=run, end=used)
    arms = {"champion": start.model} | {f"round {one.number}": one.model for one in rounds}
    measured = evaluation(settings, here, arms, ground.test, parent, cores=settings.compute.threads)
    champion = choose_champion(settings, here, ground, start.model, rounds, parent)
    result = RunResult(
        run=run, kind="scheduled", config=settings, started=started, seconds=time.monotonic() - began, ground=ground,
        replay=first_model.rows, rounds=rounds,
        arms=arms, evaluations=measured, champion=champion, notes=notes_on(rounds, settings),
    )  # fmt: skip
    path = str(publish(here, result, parent, f"scheduled run of {settings.name}"))
    return Completed(message=path, data=path)


def control_of(
    settings: RunConfig, here: Workplace, ground: Foundation, parent: str
) -> tuple[FinetuneConfig, Ref, Ref]:
    """The mask-predict baseline: all samples that ReDiff learns from, for at least as many steps as all its stages.

    The samples of rounds that patience leaves out are among them too.
    """
    count = settings.rounds.samples
    first = [ground.used + number * count for number in range(settings.rounds.n)]
    later = [samples_of(settings, here, "train", start, count, 1, ground.ingested, parent) for start in first]
    masking = MaskConfig(mask=settings.mask, response_length=settings.model.response_length, seed=settings.seed + 1)
    rows = only(mask.submit(here, masking, ground.blank, [ground.samples, *later], parent=parent), "masking")
    tuning = FinetuneConfig(name="control", train=settings.baseline, objective=settings.objective, seed=settings.seed)
    return tuning, ground.base, rows


def _source(settings: RunConfig, here: Workplace, ground: Foundation) -> tuple[str, int]:
    """What samples are numbered in, and how many there are."""
    if ground.ingested is None:
        return f"scenes:{settings.seed}", settings.data.pool
    return ground.ingested.digest, int(read_manifest(here.store, ground.ingested.uri).facts["train"])


def _next_slice(
    settings: RunConfig, here: Workplace, learned: int, run: str, source: str, limit: int
) -> tuple[int, int] | None:
    count = settings.rounds.n * settings.rounds.samples
    first = learned + count  # what the first run of this configuration uses
    return take_slice(here.engine, source=source, run=run, first=first, count=count, limit=limit)


def _fitted(settings: RunConfig, slice_: tuple[int, int]) -> RunConfig:
    """The settings with whole rounds that fit into the slice; what is left over goes to the next run."""
    available = slice_[1] - slice_[0]
    samples = min(settings.rounds.samples, available)
    rounds = settings.rounds.model_copy(update={"samples": samples, "n": available // samples})
    return settings.model_copy(update={"rounds": rounds})


def champion_of(settings: RunConfig, here: Workplace) -> Ref | None:
    """The champion's checkpoint, if there is one in this store."""
    known = here.tracker.champion(settings.name)
    prefix = f"{here.store.uri}/"
    if known is None or not known.uri.startswith(prefix):
        return None
    return Ref(uri=known.uri.removeprefix(prefix), digest=known.digest, kind="checkpoint")


def choose_champion(
    settings: RunConfig, here: Workplace, ground: Foundation, start: Ref, rounds: list[Round], parent: str
) -> str:
    """Register every model and move the alias where the dev result's interval says so; returns the champion's name.

    "" if MLflow went away: its absence at the end takes nothing of what the run has made.
    """
    try:
        return _promoted(settings, here, ground, start, rounds, parent)
    except ServerError as error:
        get_run_logger().warning("no champion was chosen: %s", error)
        return ""


def _promoted(
    settings: RunConfig, here: Workplace, ground: Foundation, start: Ref, rounds: list[Round], parent: str
) -> str:
    setting, threads = settings.rounds.promote_on, settings.compute.threads
    names = [("round 0", start)] + [(f"round {one.number}", one.model) for one in rounds]
    results = [evaluate_dev(settings, here, model, ground.dev, threads, parent) for _, model in names]
    reigning = champion_of(settings, here)
    best = None if reigning is None else evaluate_dev(settings, here, reigning, ground.dev, threads, parent)
    champion = "the champion before"
    for (name, model), dev in zip(names, results, strict=True):
        if reigning is not None and model.digest == reigning.digest:
            champion = name
            continue
        tags = {"redraft.arm": name, "redraft.config": settings.name}
        version = register.submit(here, settings.name, model, dev, setting, tags, parent=parent).result()
        if best is None or beats(here, dev, best, setting, settings.seed):
            promote.submit(here, settings.name, version).result()
            best, champion = dev, name
    return champion


def notes_on(rounds: list[Round], settings: RunConfig) -> list[str]:
    """Sentences for the reader: what each round gained, and why the loop ended."""
    notes = [
        f"Round {one.number} {'beats' if one.gained else 'does not beat'} the best round before it on the dev split "
        f"({settings.rounds.promote_on}, 95 % interval of the paired difference)."
        for one in rounds
    ]
    if (ran := len(rounds)) < (planned := settings.rounds.n):
        patience = settings.rounds.patience
        lost_patience = ran >= patience and not any(one.gained for one in rounds[-patience:])
        reason = f"the last {patience} gained nothing" if lost_patience else "no unused samples are left for more"
        notes.append(f"Stopped after {ran} of {planned} rounds: {reason}.")
    return notes

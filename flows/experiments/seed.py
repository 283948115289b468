"""One seed of the experiments, as a flow: make the models, measure them, and hand back the rows of each experiment."""

import resource
import time
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from core.config import RunConfig, parse_config
from core.manifest import Ref, read_manifest, read_table
from data_contracts import Evaluations
from flows.experiments.catalogue import CATALOGUE, settings_by_model
from flows.experiments.lab import Lab
from flows.gathering import gather
from flows.lineage import ancestors
from flows.lost_runs import end_as_failed, note_process
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.rounds import open_pipeline
from tasks.workplace import Workplace

Rows = list[dict[str, Any]]


@flow(
    name="experiment",
    flow_run_name="{run}",
    on_failure=[end_as_failed],
    on_crashed=[end_as_failed],
    on_cancellation=[end_as_failed],
)
def measure_seed(
    config: dict[str, Any], place: dict[str, Any], run: str, experiments: list[str]
) -> tuple[float, dict[str, Rows]]:
    """The seconds of all stages that it took, now or before, and experiment -> its rows, for one seed."""
    note_process()
    settings, here = parse_config(config, run), Workplace.model_validate(place).for_run(run)
    runner = ThreadPoolTaskRunner(max_workers=max(1, settings.compute.threads // settings.compute.beside))
    parent = open_pipeline(here, run, {"redraft.run": run, "redraft.config": settings.name}, config)
    models, evaluations = _measured.with_options(task_runner=runner)(settings, here, experiments, parent)
    here.tracker.finish(parent, "FINISHED")
    stages = ancestors(here.store, evaluations.values())
    seconds = round(sum(manifest.seconds for manifest in stages.values()), 1)
    return seconds, {name: rows_of(here, name, models, evaluations) for name in experiments}


@flow(name="arms", flow_run_name="arms")
def _measured(
    config: RunConfig, place: Workplace, experiments: list[str], parent: str
) -> tuple[dict[str, Ref], dict[tuple[str, str], Ref]]:
    """Models by name, and evaluations by (model, split)."""
    lab, wanted = Lab(config, place, parent), settings_by_model(experiments)
    names = dict.fromkeys(name for name, _ in wanted)
    first = sorted(names, key=lambda name: not name.startswith("mask-predict"))  # long, and they need the base alone
    pending = {name: lab.model(name) for name in first}
    futures = {name: model for name, model in pending.items() if not isinstance(model, Ref)}
    finished = dict(zip(futures, gather(list(futures.values()), "trainings"), strict=True))
    models = {name: finished.get(name, model) for name, model in pending.items()}
    scenes = {"test": lab.ground.test, "dev": lab.ground.dev}
    evaluations = [
        evaluate.submit(place, EvaluateConfig.of(config, name, settings), models[name], scenes[split],
                        threads=config.compute.beside, parent=parent)
        for (name, split), settings in wanted.items()
    ]  # fmt: skip
    return models, dict(zip(wanted, gather(evaluations, "evaluations"), strict=True))


def rows_of(place: Workplace, experiment: str, models: dict[str, Ref], evaluations: dict[tuple[str, str], Ref]) -> Rows:
    """One row an arm and setting: the summary, and the score of every scene in the order of the samples' names."""
    split = CATALOGUE[experiment].split
    rows = []
    for arm, wanted in CATALOGUE[experiment].arms.items():
        store, model, evaluation = (
            place.store,
            models[wanted.model],
            evaluations[wanted.model, split],
        )
        about = read_manifest(store, evaluation.uri)
        facts, samples = about.facts["settings"], about.parents["samples"][0]
        steps = int(read_manifest(store, model.uri).facts["train_steps"])
        scenes = read_table(store, evaluation, Evaluations).sort("sample_id")
        for setting in wanted.settings:
            found = scenes.filter(setting=setting)
            shape = found.row(0, named=True)
            rows.append(
                {
                    "arm": arm, "model": wanted.model, "setting": setting, "policy": shape["policy"],
                    "tokens_per_step": shape["tokens_per_step"], "extra_steps": shape["extra_steps"],
                    "train_steps": steps, "model_digest": model.digest, "samples_digest": samples.digest,
                    **{key: _rounded(value) for key, value in facts[setting].items()},
                    "scores": [round(score, 3) for score in found["score"]],
                }
            )  # fmt: skip
    return rows


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 5) if isinstance(value, float) else value


class Stopwatch:
    """Wall and processor seconds since it was made; processor time of this process and of children that have ended."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), _cpu()

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        return {
            "wall_seconds": round(time.monotonic() - self._wall, 1), "cpu_seconds": round(_cpu() - self._cpu, 1),
        }  # fmt: skip


def _cpu() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)

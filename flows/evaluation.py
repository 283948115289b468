"""The flow `evaluate`: every arm over the test split, at every decoder setting."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from core.config import RunConfig
from core.manifest import Ref
from flows.gathering import gather
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.workplace import Workplace

FROZEN_ONLY = ("base",)
"""Arms that were never trained to see wrong tokens are not asked to refine."""


@flow(name="evaluate", flow_run_name="evaluate")
def _evaluation(
    config: RunConfig, place: Workplace, arms: dict[str, Ref], test: Ref, threads: int, parent: str
) -> dict[str, Ref]:
    futures = [
        evaluate.submit(place, _measuring(config, arm), model, test, threads=threads, parent=parent)
        for arm, model in arms.items()
    ]
    return dict(zip(arms, gather(futures, "evaluations"), strict=True))


def evaluation(
    config: RunConfig, place: Workplace, arms: dict[str, Ref], test: Ref, parent: str, *, cores: int
) -> dict[str, Ref]:
    """Arms (name -> model) -> their evaluations: as many arms side by side as there are cores, a thread each."""
    side_by_side = min(cores, len(arms))
    measured = _evaluation.with_options(task_runner=ThreadPoolTaskRunner(max_workers=side_by_side))
    return measured(config, place, arms, test, max(1, cores // side_by_side), parent)


def _measuring(config: RunConfig, arm: str) -> EvaluateConfig:
    settings = tuple(name for name in config.evaluate.settings if arm not in FROZEN_ONLY or name.endswith("freeze"))
    return EvaluateConfig(
        arm=arm,
        settings=settings,
        batch_size=config.evaluate.batch_size,
        response_length=config.model.response_length,
        seed=config.seed,
    )

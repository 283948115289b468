"""The flow `evaluate`: every arm over the test split, at every decoder setting."""

from prefect import flow

from core.config import RunConfig
from core.manifest import Ref
from flows.gathering import gather
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.workplace import Workplace

FROZEN_ONLY = ("base",)
"""Arms that were never trained to see wrong tokens are not asked to refine."""


@flow(name="evaluate", flow_run_name="evaluate")
def evaluation(config: RunConfig, place: Workplace, arms: dict[str, Ref], test: Ref, parent: str) -> dict[str, Ref]:
    """Arms (name -> model) -> their evaluations, two arms side by side."""
    futures = [
        evaluate.submit(place, _measuring(config, arm), model, test, threads=config.compute.beside, parent=parent)
        for arm, model in arms.items()
    ]
    return dict(zip(arms, gather(futures, "evaluations"), strict=True))


def _measuring(config: RunConfig, arm: str) -> EvaluateConfig:
    settings = tuple(name for name in config.evaluate.settings if arm not in FROZEN_ONLY or name.endswith("freeze"))
    return EvaluateConfig(
        arm=arm,
        settings=settings,
        batch_size=config.evaluate.batch_size,
        response_length=config.model.response_length,
        seed=config.seed,
    )

"""Every arm over the test split, at every decoder setting."""

from functools import partial

from core.config import RunConfig
from core.decoding.settings import DecodeSettings
from core.manifest import Ref
from flows.gathering import side_by_side
from tasks.compute import shards_at_once
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.workplace import Workplace

FROZEN_ONLY = ("base",)
"""Arms that were never trained to see wrong tokens are not asked to refine."""


def evaluation(
    config: RunConfig, place: Workplace, arms: dict[str, Ref], test: Ref, parent: str, *, cores: int
) -> dict[str, Ref]:
    """Arms (name -> model) -> their evaluations: side by side on all GPUs, or with a thread each on the processor."""
    each = cores if config.compute.one_at_a_time else 1
    workers = min(shards_at_once(place.devices, threads=cores, each=each), len(arms))
    threads = max(1, cores // workers)
    tasks = [
        partial(evaluate.submit, place, _measuring(config, arm), model, test, threads=threads, parent=parent)
        for arm, model in arms.items()
    ]
    return dict(zip(arms, side_by_side("evaluations", workers, tasks), strict=True))


def _measuring(config: RunConfig, arm: str) -> EvaluateConfig:
    names = config.evaluate.settings
    frozen = tuple(name for name in names if DecodeSettings.parse(name).policy == "freeze")
    return EvaluateConfig.of(config, arm, frozen if arm in FROZEN_ONLY else names)

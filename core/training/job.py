"""One training from a checkpoint folder to a checkpoint folder, by this process or as one of several."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from core.corruption.settings import ObjectiveSettings
from core.heap import large_tensors_apart
from core.ingest.images import LoadImage
from core.models.denoiser import load_denoiser, save_denoiser
from core.settings import Settings
from core.training.ahead import Ahead
from core.training.batches import TrainingBatches
from core.training.loop import OnMetrics, TrainResult, train
from core.training.parts import is_whole, parts_of
from core.training.settings import TrainSettings
from core.training.sharding import ALONE, Processes

MODEL, STEPS = "model", "steps"
"""Folders of a job's work folder: what comes out, and the checkpoints on the way."""


class TrainJob(Settings):
    """What is trained, on what, and how. `work` has the results, and is where an interrupted job goes on."""

    model: Path
    train: TrainSettings
    objective: ObjectiveSettings
    seed: int
    threads: int
    """Processor threads of each process."""
    work: Path


def train_here(
    job: TrainJob,
    rows: pl.DataFrame,
    load_image: LoadImage,
    *,
    device: str,
    on_metrics: OnMetrics,
    processes: Processes = ALONE,
) -> TrainResult:
    """Load the model, train it on TrainingExamples, and write it, and its adapters if there are any, to `work`.

    The result has the rows that the model cannot read as rejects.

    Raises:
        RedraftError: as `load_denoiser`, `TrainingBatches` and `train`.
    """
    denoiser = load_denoiser(job.model, device=device)
    settings = job.train
    batches = TrainingBatches(
        rows,
        denoiser,
        load_image,
        batch_size=settings.batch_size,
        seed=job.seed,
        objective=job.objective,
        bucket=settings.bucket,
    )
    micro, size = settings.micro_batch, settings.batch_size
    parts = parts_of(size, micro_batch=micro, rank=processes.rank, world=processes.world)
    ahead = Ahead(batches, steps=settings.steps, parts=() if is_whole(parts, size) else parts)
    with ahead as prepared, large_tensors_apart():
        result = train(
            denoiser,
            prepared,
            settings,
            grounding_weight=job.objective.grounding_weight,
            seed=job.seed,
            threads=job.threads,
            processes=processes,
            checkpoint_dir=job.work / STEPS,
            on_metrics=on_metrics,
        )
    if processes.rank == 0:
        save_denoiser(denoiser, job.work / MODEL)
        if result.adapter is not None:
            result.adapter.save(job.work / MODEL)
    return replace(result, rejects=batches.rejects)

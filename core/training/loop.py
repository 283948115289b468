"""The training loop: one for all methods. What a row teaches is in its weights and targets, not here.

A batch depends on the step alone, nothing else is random, and a checkpoint holds model, optimizers and step: so a
training that was killed and resumed ends with the same bits as one that was not.

Shapes: B rows, L text tokens, P rows of a part, N supervised tokens of the batch, D hidden size, R image regions,
V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import polars as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core.corruption.rows import reject_frame
from core.errors import ConfigError, FatalError, InputError
from core.interruption import check
from core.models.denoiser import Features, TrainableDenoiser
from core.objectives import grounding, weighed
from core.training.batches import Batch
from core.training.lora import Merged
from core.training.optim import (
    build_optimizers,
    learning_rate,
    set_learning_rate,
)
from core.training.parts import parts_of
from core.training.resumption import CurvePoint, Reported, resume, save
from core.training.settings import TrainSettings
from core.training.sharding import ALONE, Processes, deal_out, drop_gradients_of_sight, put_together, whole
from core.training.shares import Batches, Share, shares
from core.training.trainee import Trainee, prepare
from core.training.window import Window
from data_contracts import TokenKind

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Called with the number of updates done and the means of the metrics since the last call."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """`resumed_at` updates were done before this call, which took `seconds`; `curve` has their metrics too.

    `adapter` was trained and is merged into the model, if `lora.rank` asked for one. `rejects`: rows that the model
    cannot read, and was not trained on (row_id, outcome, reason, detail).
    """

    steps: int
    resumed_at: int
    seconds: float
    curve: list[CurvePoint]
    adapter: Merged | None = None
    rejects: pl.DataFrame = field(default_factory=lambda: reject_frame([], [], []))

    @property
    def metrics(self) -> Mapping[str, float]:
        """The means that were reported last."""
        return self.curve[-1][1] if self.curve else {}


@contextmanager
def _says_what_saves_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the training does not fit into the device's memory: set its micro_batch (rows computed at once) or "
            f"gradient_checkpointing; `redraft estimate --train` tells what fits. {error}"
        ) from error


@_says_what_saves_memory()
def train(
    model: TrainableDenoiser,
    batches: Batches,
    settings: TrainSettings,
    *,
    grounding_weight: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    processes: Processes = ALONE,
    checkpoint_dir: Path | None = None,
    on_metrics: OnMetrics | None = None,
) -> TrainResult:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: the weights to start from; of several processes each has all of them.
        batches: the rows.
        settings: how.
        grounding_weight: factor on the loss of the region head, where model and batch have regions.
        seed: of the adapters, if there are any.
        threads: processor threads to compute with, set for the process: equal numbers give equal bits.
        processes: those that train together. In the end the first has the trained model, to be saved and not to be
            run, and the others have none.
        checkpoint_dir: goes on from the newest checkpoint in it, and writes more there; None: neither.
        on_metrics: receives loss, loss and accuracy by kind, learning rate, gradient norm, share of padding and steps
            a second; in the first process.

    Raises:
        FatalError: if loss or gradient is not finite; the message names the step.
        ConfigError: if `checkpoint_dir` belongs to a training with other settings, or the settings do not fit.
        InputError: if the device's memory is too small; the message names what needs less.
        Interrupted: somebody called `core.interruption.interrupt`.
    """
    trainee = prepare(model, settings, seed=seed)
    step_loss = _dealt_out(trainee, processes, batches)
    optimizers = build_optimizers(model, settings, trainee.rates)
    first, curve, window = resume(trainee, optimizers, checkpoint_dir)
    started = time.monotonic()
    parts = parts_of(settings.batch_size, micro_batch=settings.micro_batch, rank=processes.rank, world=processes.world)
    torch.set_num_threads(threads)  # and left so: to set it back would change trainings beside this one
    for step in range(first, settings.steps):
        check()
        set_learning_rate(optimizers, learning_rate(step, settings))
        measured = [_backward(step_loss, share) for share in shares(batches, step, parts, settings, grounding_weight)]
        norm = _update(trainee, optimizers, measured, step, sees=processes.mesh is None or batches.shows(step))
        window.add([metrics for metrics in measured if metrics], {"grad_norm": norm})
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            curve.append((done, {**window.means(processes.gather), "lr": learning_rate(step, settings)}))
            window = Window()
            if on_metrics is not None and processes.rank == 0:
                on_metrics(*curve[-1])
        if checkpoint_dir is not None and (done % settings.checkpoint_every == 0 or done == settings.steps):
            reported: Reported = {"curve": curve, "window": window.totals(processes.gather)}
            save(trainee, optimizers, reported, checkpoint_dir, done, processes)
    seconds = time.monotonic() - started
    if processes.mesh is not None:
        put_together(model, processes)
    merged = trainee.finish() if processes.rank == 0 else None
    return TrainResult(steps=settings.steps, resumed_at=first, seconds=seconds, curve=curve, adapter=merged)


def _dealt_out(trainee: Trainee, processes: Processes, batches: Batches) -> "StepLoss":
    """What a step computes; of several processes each keeps its share of the weights."""
    step_loss = StepLoss(trainee)
    if processes.mesh is None:
        return step_loss
    if trainee.settings.optimizer == "muon":
        raise ConfigError("several processes: Muon needs whole matrices, and they are dealt out: use adamw")
    deal_out(step_loss, trainee.model, processes, pictured=batches.pictured)
    return step_loss


class StepLoss(nn.Module):
    """`batch_loss` as a module, whose forward is all that a step computes: what deals out parameters hooks on it."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.model = cast(nn.Module, trainee.model)
        self._computing = trainee.computing

    def forward(self, batch: Batch, grounding_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its metrics."""
        with self._computing():
            return batch_loss(cast(TrainableDenoiser, self.model), batch, grounding_weight)


def _backward(step_loss: StepLoss, share: Share) -> dict[str, Tensor]:
    """Add the gradients of a share of the loss. Returns its metrics; none of rows that do not count."""
    loss, metrics = step_loss(share.batch, share.grounding_weight)
    loss = loss * share.scale
    if loss.requires_grad:  # not of text alone where nothing but sight is trained
        loss.backward()
    if share.scale == 0.0:
        return {}
    return {**metrics, "loss": loss.detach(), "padding": share.batch.padding}


def batch_loss(model: TrainableDenoiser, batch: Batch, grounding_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch and its metrics; the vocabulary is scored only where a token weighs something."""
    hidden_BLD, regions_BLR = model.hidden_and_regions(
        batch.input_ids_BL,
        valid_BL=batch.valid_BL,
        features_BND=_features(model, batch),
        prompt_BL=batch.kinds_BL == TokenKind.PROMPT,
    )
    supervised_BL = batch.weights_BL != 0
    weights_N = batch.weights_BL[supervised_BL]
    losses = model.token_losses(hidden_BLD[supervised_BL], batch.target_ids_BL[supervised_BL], weights_N)
    loss, metrics = weighed(losses, weights_N, batch.kinds_BL[supervised_BL], rows=len(batch.input_ids_BL))
    if grounding_weight > 0 and regions_BLR is not None and batch.regions_BL is not None:
        region_loss, region_metrics = grounding(regions_BLR, batch.regions_BL)
        loss, metrics = loss + grounding_weight * region_loss, metrics | region_metrics
    return loss, metrics


def _features(model: TrainableDenoiser, batch: Batch) -> Features | None:
    """Of the images that the rows show, row by row; None without images."""
    if batch.pixels is None or batch.image_index_I is None:
        return None
    features = model.image_features(batch.pixels)[batch.image_index_I]
    return features if batch.images_B is None else features.grouped(batch.images_B)


def _update(
    trainee: Trainee, optimizers: list[Optimizer], measured: list[dict[str, Tensor]], step: int, *, sees: bool
) -> Tensor:
    """Update the weights and drop the gradients. Returns the norm of the gradient, over all processes."""
    if not sees:
        drop_gradients_of_sight(trainee.model)
    settings = trainee.settings
    norm = whole(torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), settings.grad_clip))
    loss = sum(metrics["loss"].item() for metrics in measured if metrics)
    if not (math.isfinite(loss) and math.isfinite(norm.item())):
        raise FatalError(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm.item()}. "
            "Lower the learning rate or the noise weights; the newest checkpoint is from before"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm

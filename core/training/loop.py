"""The training loop: one for all methods. What a row teaches is in its weights and targets, not here.

A batch depends on the step alone, nothing else is random, and a checkpoint holds model, optimizers and step: so a
training that was killed and resumed ends with the same bits as one that was not.

Shapes: B rows, L text tokens, N supervised tokens of the batch, D hidden size, R image regions, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.errors import ConfigError, FatalError
from core.models.denoiser import TrainableDenoiser
from core.objectives import grounding, weighed
from core.training.batches import Batch
from core.training.checkpoint import TrainingState, load_latest, save_state
from core.training.lora import Adapters, Merged
from core.training.optim import (
    build_optimizers,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from core.training.settings import TrainSettings, dump_settings
from data_contracts import TokenKind

CurvePoint = tuple[int, Mapping[str, float]]
"""Number of updates done, and the means of the metrics since the point before."""

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Called with the number of updates done and the means of the metrics since the last call."""


class Batches(Protocol):
    """Where training rows come from."""

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0): always the same for the same step."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """`resumed_at` updates were done before this call, which took `seconds`; `curve` has their metrics too.

    `adapter` was trained and is merged into the model, if `lora.rank` asked for one.
    """

    steps: int
    resumed_at: int
    seconds: float
    curve: list[CurvePoint]
    adapter: Merged | None = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The means that were reported last."""
        return self.curve[-1][1] if self.curve else {}


def train(
    model: TrainableDenoiser,
    batches: Batches,
    settings: TrainSettings,
    *,
    grounding_weight: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    checkpoint_dir: Path | None = None,
    on_metrics: OnMetrics | None = None,
) -> TrainResult:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: the weights to start from.
        batches: the rows.
        settings: how.
        grounding_weight: factor on the loss of the region head, where model and batch have regions.
        seed: of the adapters, if there are any.
        threads: processor threads to compute with, set for the process: equal numbers give equal bits.
        checkpoint_dir: goes on from the newest checkpoint in it, and writes more there; None: neither.
        on_metrics: receives loss, loss and accuracy by kind, learning rate, gradient norm and steps a second.

    Raises:
        FatalError: if loss or gradient is not finite; the message names the step.
        ConfigError: if `checkpoint_dir` belongs to a training with other settings.
    """
    adapters = Adapters(model, settings.lora, seed=seed) if settings.lora.rank else None
    optimizers = build_optimizers(model, settings)
    first, curve = _resume(model, optimizers, settings, checkpoint_dir)
    window, started = _Window(), time.monotonic()
    model.train()
    torch.set_num_threads(threads)  # and left so: to set it back would change trainings beside this one
    for step in range(first, settings.steps):
        lr = learning_rate(step, settings)
        set_learning_rate(optimizers, lr)
        loss, metrics = batch_loss(model, batches.batch(step), grounding_weight)
        norm = _update(model, optimizers, loss, settings, step)
        window.add({**metrics, "loss": loss.detach(), "grad_norm": norm})
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            curve.append((done, {**window.means(), "lr": lr}))
            window = _Window()
            if on_metrics is not None:
                on_metrics(*curve[-1])
        if checkpoint_dir is not None and (done % settings.checkpoint_every == 0 or done == settings.steps):
            _save(model, optimizers, settings, curve, checkpoint_dir, done)
    model.train(False)
    seconds = time.monotonic() - started
    merged = None if adapters is None else adapters.merge()
    return TrainResult(steps=settings.steps, resumed_at=first, seconds=seconds, curve=curve, adapter=merged)


def batch_loss(model: TrainableDenoiser, batch: Batch, grounding_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch and its metrics; the vocabulary is scored only where a token weighs something."""
    features_BND = None if batch.pixels is None else model.image_features(batch.pixels)
    if features_BND is not None and batch.image_index_B is not None:
        features_BND = features_BND[batch.image_index_B]
    hidden_BLD, regions_BLR = model.hidden_and_regions(
        batch.input_ids_BL,
        valid_BL=batch.valid_BL,
        features_BND=features_BND,
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


def _update(
    model: TrainableDenoiser, optimizers: list[Optimizer], loss: Tensor, settings: TrainSettings, step: int
) -> Tensor:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise FatalError(
            f"training diverged at step {step}: loss {loss.item()}, gradient norm {norm.item()}. "
            "Lower the learning rate or the noise weights; the newest checkpoint is from before"
        )
    for optimizer in optimizers:
        optimizer.step()
    return norm


def _resume(
    model: TrainableDenoiser, optimizers: list[Optimizer], settings: TrainSettings, folder: Path | None
) -> tuple[int, list[CurvePoint]]:
    """Load the newest checkpoint, if there is one. Returns the number of updates that are done, and their curve."""
    state = load_latest(folder) if folder is not None else None
    if state is None:
        return 0, []
    if state.about["settings"] != _decisive(settings):
        raise ConfigError(f"{folder} holds checkpoints of a training with other settings: use another folder")
    _load_trained(model, state.model)
    load_optimizer_tensors(model.named_parameters(), optimizers, state.optimizer)
    return state.step, [(step, metrics) for step, metrics in state.about["curve"]]


def _save(
    model: TrainableDenoiser,
    optimizers: list[Optimizer],
    settings: TrainSettings,
    curve: list[CurvePoint],
    folder: Path,
    step: int,
) -> None:
    tensors = optimizer_tensors(model.named_parameters(), optimizers)
    about = {"settings": _decisive(settings), "curve": curve}
    save_state(folder, TrainingState(step=step, model=_trained(model), optimizer=tensors, about=about))


def _trained(model: TrainableDenoiser) -> dict[str, Tensor]:
    """The parameters that a training changes; the others are in the checkpoint that it started from."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _load_trained(model: TrainableDenoiser, tensors: Mapping[str, Tensor]) -> None:
    known = dict(model.named_parameters())
    if strange := sorted(tensors.keys() - known.keys() | _trained(model).keys() - tensors.keys()):
        raise ConfigError(f"the training's checkpoint belongs to another model: {strange[0]!r} is in one of them alone")
    for name, tensor in tensors.items():
        known[name].copy_(tensor)


def _decisive(settings: TrainSettings) -> dict[str, object]:
    """The settings that the weights depend on."""
    dumped = dump_settings(settings)
    return {name: value for name, value in dumped.items() if name not in ("log_every", "checkpoint_every")}


@dataclass
class _Window:
    """Means of the metrics since it was made; those of a kind are weighted by how many tokens were of it."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for name, value in metrics.items():
            group, _, kind = name.partition("/")
            tokens = metrics.get(f"count/{kind}") if group in ("ce", "accuracy") else None
            weight = 1.0 if tokens is None else float(tokens)
            self.sums[name] = self.sums.get(name, 0.0) + weight * float(value)
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        rate = self.steps / max(time.monotonic() - self.started, 1e-9)
        return {name: total / self.weights[name] for name, total in self.sums.items()} | {"steps_per_second": rate}

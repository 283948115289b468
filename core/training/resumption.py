"""Where a training stands: its trained weights, optimizers and metrics as checkpoints, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.errors import ConfigError
from core.training.checkpoint import TrainingState, load_latest, save_state
from core.training.optim import load_optimizer_tensors, optimizer_tensors
from core.training.settings import SAVES_MEMORY, TrainSettings, dump_settings
from core.training.sharding import Processes, share_of
from core.training.trainee import Trainee
from core.training.window import Totals, Window

CurvePoint = tuple[int, Mapping[str, float]]
"""Number of updates done, and the means of the metrics since the point before."""


class Reported(TypedDict):
    """The metrics of the updates that are done: their means, and what the next report begins with."""

    curve: list[CurvePoint]
    window: Totals


def resume(trainee: Trainee, optimizers: list[Optimizer], folder: Path | None) -> tuple[int, list[CurvePoint], Window]:
    """Load the newest checkpoint, if there is one. Returns the number of updates that are done, and their metrics."""
    state = load_latest(folder) if folder is not None else None
    if state is None:
        return 0, [], Window()
    if state.about["settings"] != _decisive(trainee.settings):
        raise ConfigError(f"{folder} holds checkpoints of a training with other settings: use another folder")
    _load_trained(trainee, state.model)
    load_optimizer_tensors(trainee.model.named_parameters(), optimizers, state.optimizer)
    curve = [(step, metrics) for step, metrics in state.about["curve"]]
    return state.step, curve, Window(before=state.about["window"])


@torch.no_grad()
def _load_trained(trainee: Trainee, tensors: Mapping[str, Tensor]) -> None:
    known = dict(trainee.model.named_parameters())
    if strange := sorted(tensors.keys() - known.keys() | trainee.trained().keys() - tensors.keys()):
        raise ConfigError(f"the training's checkpoint belongs to another model: {strange[0]!r} is in one of them alone")
    for name, tensor in tensors.items():
        known[name].copy_(share_of(tensor, known[name]))


def save(
    trainee: Trainee,
    optimizers: list[Optimizer],
    reported: Reported,
    folder: Path,
    step: int,
    processes: Processes,
) -> None:
    """All processes gather, the first one writes."""
    model = processes.whole(trainee.trained())
    optimizer = processes.whole(optimizer_tensors(trainee.model.named_parameters(), optimizers))
    about = {"settings": _decisive(trainee.settings), **reported}
    if processes.rank == 0:
        save_state(folder, TrainingState(step=step, model=model, optimizer=optimizer, about=about))


_GOES_ON = ("log_every", "checkpoint_every", *SAVES_MEMORY)
"""Settings that a training may go on without: they change no update, those of memory up to rounding."""


def _decisive(settings: TrainSettings) -> dict[str, object]:
    """The settings that the weights depend on."""
    return {name: value for name, value in dump_settings(settings).items() if name not in _GOES_ON}

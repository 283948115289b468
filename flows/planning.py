"""The verb `estimate --train`."""

import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from core.config import RunConfig
from core.corruption.responses import prompt_ids
from core.errors import ConfigError, InputError
from core.models.pretrained import PretrainedDenoiser
from core.training.memory import MemoryPlan, Planner, Remedy, RowSizes, blank, remedies
from flows.running import DONE, FAILED, emit

_GB = 10**9
_RUNTIME = 1.0 * _GB
"""Of a process before it has a model: libraries, or what CUDA keeps for itself."""
_ROOM = 1.2
"""Allocators and kernels take more than the tensors; see tests/results/benchmarks/memory_planner.json."""


def run_planning(config: RunConfig, *, memory_gb: float | None, image: tuple[int, int], json: bool) -> int:
    """Plan each training of a run, and say what would make those fit that do not. Nothing is started.

    Returns FAILED if one does not fit.

    Raises:
        ConfigError: the configuration names no checkpoint.
    """
    config.check_trainings()
    started = time.monotonic()
    if not config.model.checkpoint:
        raise ConfigError("estimate --train plans the training of a checkpoint: give --model.checkpoint FOLDER")
    checkpoint, processes = Path(config.model.checkpoint), config.compute.processes
    available = memory_gb * _GB if memory_gb else _memory(processes)
    shared = not memory_gb and not torch.cuda.is_available()
    budget = int((available - _RUNTIME) / _ROOM)
    row, said = _row(config, blank(checkpoint), image)
    plans: dict[str, MemoryPlan] = {}
    helps: dict[str, list[Remedy]] = {}
    planner = Planner(lambda: blank(checkpoint), row)
    with Console(stderr=True).status("") as shown:
        for name, settings in config.trainings.items():
            shown.update(f"running a step of {name} on tensors without content")
            plans[name] = planner.plan(settings, processes=processes)
            if plans[name].total > budget:
                shown.update(f"{name} does not fit: trying what would help")
                helps[name] = remedies(planner, settings, processes=processes, memory=budget, shared=shared)
    _print(plans, helps, said, available)
    if json:
        emit(
            {
                "verb": "estimate",
                "row": asdict(row),
                "assumed": said,
                "memory_bytes": int(available),
                "needed_bytes": {name: needed(plan) for name, plan in plans.items()},
                "plans": {name: asdict(plan) for name, plan in plans.items()},
                "fits": {name: name not in helps for name in plans},
                "would_fit": {name: {one.change: needed(one.plan) for one in found} for name, found in helps.items()},
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    return FAILED if helps else DONE


def _row(config: RunConfig, model: PretrainedDenoiser, image: tuple[int, int]) -> tuple[RowSizes, str]:
    """A long row as this configuration and this model make it, and in words what was taken to be in it.

    Raises:
        InputError: the model cannot read an image of this size.
    """
    response, default = config.model.response_length, config.ingest.default_prompt
    sees = model.vision is not None
    own = prompt_ids(model.tokenizer, default, with_image=sees)
    prompt = max(config.model.prompt_length, len(own))
    by = f"{default!r} in the model's own template" if prompt == len(own) else "model.prompt_length"
    said = f"rows of {prompt:,} tokens of a prompt ({by}) and {response:,} of a response"
    if not sees:
        return RowSizes(text=prompt + response, supervised=response), said
    width, height = image
    try:
        positions = model.image_positions(width, height)
    except ValueError as error:
        raise InputError(f"--image {width} {height}: {error}") from error
    row = RowSizes(text=prompt + response, supervised=response, image=(width, height))
    return row, f"{said}, and an image of {width} x {height}, which takes {positions:,} positions"


def _memory(processes: int) -> float:
    """Bytes that a process may take on this machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return psutil.virtual_memory().total / processes


def needed(plan: MemoryPlan) -> int:
    """With what is not in tensors."""
    return int(plan.total * _ROOM + _RUNTIME)


def _print(plans: dict[str, MemoryPlan], helps: dict[str, list[Remedy]], said: str, available: float) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("GB a process", *plans):
        table.add_column(column, justify="left" if column == "GB a process" else "right")
    for part in ("weights", "gradients", "optimizer", "gathered", "working", "start"):
        table.add_row(part, *(f"{getattr(plan, part) / _GB:,.1f}" for plan in plans.values()))
    table.add_row("needed", *(f"{needed(plan) / _GB:,.1f}" for plan in plans.values()))
    console = Console()
    console.print(table)
    console.print(f"for {said}; there are {available / _GB:,.1f} GB", highlight=False)
    for name in plans:
        if name not in helps:
            console.print(f"{name} fits", style="green")
            continue
        console.print(f"{name} does not fit", style="red")
        for one in helps[name]:
            console.print(f"  with {one.change}: {needed(one.plan) / _GB:,.1f} GB", highlight=False)
        if not helps[name]:
            console.print("  nor with all that is known to help: take a larger device or a smaller model")

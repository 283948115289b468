"""What two processes compute together, written down for tests that compare it with what one computes alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from core.models.denoiser import load_denoiser, save_denoiser
from core.training.loop import train
from core.training.settings import GroupRates, LoraSettings, TrainSettings
from core.training.sharding import ALONE, Processes
from tests.core.models.test_published_use import SHAS
from tests.core.training.trainings import Cut, batches_of

PLAIN = TrainSettings(steps=3, batch_size=5, lr=1e-3, warmup=0, optimizer="adamw", checkpoint_every=2, log_every=1)
CASES = {
    "full": PLAIN,
    "lora": PLAIN.model_copy(
        update={
            "lora": LoraSettings(rank=4, alpha=8.0), "group_lr": GroupRates(vision_adapter=1e-3),
            "micro_batch": 2, "bucket": 2, "gradient_checkpointing": True,
        }
    ),
}  # fmt: skip
_BLIND_PARTS = PLAIN.model_copy(update={"steps": 4, "batch_size": 3, "bucket": 4, "micro_batch": 1})
SOME_BLIND = {
    "some blind": PLAIN.model_copy(update={"micro_batch": 2, "batch_size": 6}),
    "blind steps": PLAIN.model_copy(update={"steps": 8, "batch_size": 3, "bucket": 4}),
    "sight alone": _BLIND_PARTS.model_copy(update={"group_lr": GroupRates(language=0.0, head=0.0)}),
    "sight and head": _BLIND_PARTS.model_copy(update={"group_lr": GroupRates(language=0.0, vision_tower=0.0)}),
    "sight and adapters": CASES["lora"].model_copy(update={"steps": 4, "batch_size": 3, "bucket": 4, "micro_batch": 1}),
    "sight and upper adapters": _BLIND_PARTS.model_copy(
        update={
            "lora": LoraSettings(rank=4, alpha=8.0, targets=("layers.1.self_attn.q_proj",)),
            "group_lr": GroupRates(vision_tower=1e-3),
        }
    ),
}
"""Half of the rows are text alone. They are shorter and come together: some steps have no image, or one process none.

Where the embeddings stand still, what is trained begins at another place for them than for rows with images.
"""
FROZEN = CASES["lora"].model_copy(update={"precision": "bf16", "group_lr": GroupRates()})
"""With a checkpoint in bf16: its weights stand still beside adapters in fp32."""


class OneBlind:
    """The first row of each step and every fourth shows no image: one process of two has rows of text alone."""

    pictured = True

    def shows(self, step):
        return True

    def __init__(self, batches):
        self._batches = batches

    def labels(self, step, places=None):
        return 0

    def batch(self, step):
        raise AssertionError("rows with images and rows without are computed apart")

    def part(self, step, places):
        batch = self._batches.part(step, places)
        if places[0] % 2:
            return batch
        unseen = batch.input_ids_BL == -200
        return replace(batch, input_ids_BL=batch.input_ids_BL.masked_fill(unseen, 5), pixels=None, image_index_I=None)


def write(folder: Path, name: str, model, result, processes: Processes) -> None:
    if processes.rank != 0:
        return
    save_denoiser(model, folder / name)
    if result.adapter is not None:
        result.adapter.save(folder / name)
    (folder / f"{name}.json").write_text(json.dumps(result.curve))


def every_case(checkpoint: Path, folder: Path, processes: Processes, seen: Callable[[object], None]) -> None:
    for name, settings in CASES.items():
        model = load_denoiser(checkpoint)
        result = train(
            model, batches_of(model, settings), settings, seed=1, processes=processes,
            on_metrics=lambda step, metrics, model=model: seen(model),
        )  # fmt: skip
        write(folder, name, model, result, processes)
    for name, settings in SOME_BLIND.items():
        model = load_denoiser(checkpoint)
        result = train(model, batches_of(model, settings, [*SHAS, None, None, None]), settings, processes=processes)
        write(folder, name, model, result, processes)
    model = load_denoiser(checkpoint)
    settings = PLAIN.model_copy(update={"micro_batch": 1, "batch_size": 4, "steps": 2})
    result = train(model, OneBlind(batches_of(model, settings)), settings, processes=processes)
    write(folder, "one blind", model, result, processes)
    model = load_denoiser(checkpoint, dtype=torch.bfloat16)
    result = train(model, batches_of(model, FROZEN), FROZEN, seed=1, processes=processes)
    write(folder, "frozen in bf16", model, result, processes)


def tied(checkpoint: Path, folder: Path, processes: Processes) -> None:
    """A masked language model whose head shares the token embedding; rows of text alone."""
    model = load_denoiser(checkpoint)
    settings = PLAIN.model_copy(update={"micro_batch": 2})
    result = train(model, batches_of(model, settings, [None] * 4), settings, processes=processes)
    write(folder, "tied", model, result, processes)


def cut_and_resumed(checkpoint: Path, folder: Path, processes: Processes, name: str, *, steps: Path) -> None:
    """Train until the third update fails, and once more from the checkpoint that is left."""
    settings = CASES[name]
    model = load_denoiser(checkpoint)
    try:
        train(model, Cut(batches_of(model, settings), 2), settings, seed=1, processes=processes, checkpoint_dir=steps)
    except InterruptedError:
        pass
    else:
        raise AssertionError("it was not cut")
    again = load_denoiser(checkpoint)
    result = train(again, batches_of(again, settings), settings, seed=1, processes=processes, checkpoint_dir=steps)
    assert result.resumed_at == 2
    write(folder, f"{name} resumed", again, result, processes)


def run(rank: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    processes = Processes(rank=rank, world=2, mesh=init_device_mesh("cpu", (2,)))
    shards = []

    def seen(model) -> None:
        parts = list(model.parameters())
        assert all(isinstance(p, DTensor) for p in parts)
        shards.append([sum(p.to_local().numel() for p in parts), sum(p.numel() for p in parts)])

    every_case(checkpoint, folder, processes, seen)
    cut_and_resumed(checkpoint, folder, processes, "lora", steps=folder / "steps")
    tied(folder.parent / "bert", folder, processes)
    if rank == 0:
        (folder / "shards.json").write_text(json.dumps(shards))
    dist.barrier()
    dist.destroy_process_group()


def alone(checkpoint: Path, folder: Path) -> None:
    every_case(checkpoint, folder, ALONE, lambda model: None)
    tied(folder.parent / "bert", folder, ALONE)

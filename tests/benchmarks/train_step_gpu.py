"""LoRA training at the 8B shape in bf16: how much of the measured rate of bf16 matrix products it reaches.

A forward counts 2 FLOPs a parameter and position; LoRA's step 4, for the weights that stand still have no gradient. The
head counts for the supervised positions alone; attention, adapters and what is computed again are not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from core.training.loop import batch_loss
from core.training.settings import LoraSettings, TrainSettings
from core.training.trainee import prepare
from tests.benchmarks.record import Ratio, alternate
from tests.benchmarks.training_step import SHAPE_8B, Shape, batch, denoiser, parts


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """`rows` of an update are computed `at_once` at a time, whose gradients add up. matmul: side of the products."""

    shape: Shape = SHAPE_8B
    device: str = "cuda"
    rows: int = 32
    at_once: int = 8
    prompt: int = 1024
    response: int = 128
    rank: int = 16
    checkpointing: bool = False
    matmul: int = 8192


def measure(repeats: int, case: GpuCase = GpuCase()) -> tuple[dict[str, Any], list[Ratio]]:
    """Seconds and peak bytes, and the shares of the rate of matrix products that forward and step reach."""
    rate = matmul_rate(case, repeats)
    model: Any = denoiser(case.shape, device=case.device, dtype=torch.bfloat16)
    settings = TrainSettings(
        lora=LoraSettings(rank=case.rank), precision="bf16", gradient_checkpointing=case.checkpointing
    )
    trainee = prepare(model, settings, seed=0)
    positions = case.prompt + case.response
    whole = batch(
        case.shape,
        rows=case.rows,
        prompt=case.prompt,
        response=case.response,
        supervised=case.response / positions,
        device=case.device,
    )

    def forward() -> None:
        with torch.no_grad(), trainee.computing():
            for part in parts(whole, case.at_once):
                batch_loss(model, part, 0.0)
        wait(case.device)

    def step() -> None:
        for part in parts(whole, case.at_once):
            with trainee.computing():
                loss, _ = batch_loss(model, part, 0.0)
            loss.backward()
        model.zero_grad(set_to_none=True)
        wait(case.device)

    times = alternate({"forward": forward, "lora_step": step}, repeats=repeats)
    once = case.rows * (positions * case.shape.backbone + case.response * case.shape.head)
    reached = {"forward": 2 * once / times.seconds("forward"), "lora_step": 4 * once / times.seconds("lora_step")}
    measured = {
        "case": str(case),
        "seconds": times.as_json,
        "matmul_flops": rate,
        "flops": reached,
        "peak_bytes": torch.cuda.max_memory_allocated() if case.device == "cuda" else None,
    }
    return measured, [
        Ratio(what="forward, share of the bf16 matmul rate", value=reached["forward"] / rate, bound=0.55),
        Ratio(what="LoRA step, share of the bf16 matmul rate", value=reached["lora_step"] / rate, bound=0.45),
    ]


def matmul_rate(case: GpuCase, repeats: int) -> float:
    """FLOPs a second of bf16 products of square matrices, the best of some."""
    side, times = case.matmul, 10
    one, other = (torch.randn(side, side, device=case.device, dtype=torch.bfloat16) for _ in range(2))
    return max(times * 2 * side**3 / _seconds(lambda: one @ other, times, case.device) for _ in range(repeats + 1))


def _seconds(work: Callable[[], object], times: int, device: str) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return time.perf_counter() - started


def wait(device: str) -> None:
    """For what the accelerator has been given to do."""
    if device == "cuda":
        torch.cuda.synchronize()

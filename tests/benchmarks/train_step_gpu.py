"""LoRA training at the 8B shape in bf16: how much of the measured rate of bf16 matrix products it reaches.

A forward counts 2 FLOPs a parameter and position; LoRA's step 4, for the weights that stand still have no gradient. The
head counts for the supervised positions alone; attention, adapters and what is computed again are not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from core.training.loop import batch_loss
from core.training.lora import Adapters
from core.training.settings import LoraSettings
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
    Adapters(model, LoraSettings(rank=case.rank), seed=0)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    if case.checkpointing:
        model.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
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
        with torch.no_grad():
            for part in parts(whole, case.at_once):
                batch_loss(model, part, 0.0)
        wait(case.device)

    def step() -> None:
        for part in parts(whole, case.at_once):
            cast(Tensor, batch_loss(model, part, 0.0)[0]).backward()
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

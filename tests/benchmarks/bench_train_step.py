"""A training step with a large and a small vocabulary: its peak memory, and its time against a plain one and the limit.

python -m tests.benchmarks.bench_train_step --out tests/results/benchmarks/train_step.json
python -m tests.benchmarks.bench_train_step --device cuda --out tests/results/benchmarks/train_step_gpu.json

`tests.benchmarks.training_step` says what each way is. Time is that of forward and backward, without the optimizer,
whose step is the same for all; all ways in turn in one process. Memory is that of whole steps with AdamW, each way in a
process of its own (`tests.benchmarks.training_memory`): weights, gradients and the optimizer's state are in it for all.
All ways have the heap that trainings have (`core.heap.large_tensors_apart`), for time and memory alike.
"Supervised" is the share of all positions, prompts included, that have a loss. With --go-on, of time and memory what
the file has already is not measured again.

The bound on memory is held against `plain`, whose batch is computed at once, with logits everywhere: so does the
published training code. Rows one at a time, with one backward pass for all of them (`plain_rows`) or with one each, are
shown beside it without a bound.

On a machine that others use, `--clock processor` counts the seconds of the processors instead of those of the wall.
With --device cuda: LoRA at the 8B shape in bf16 (`tests.benchmarks.train_step_gpu`).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.heap import large_tensors_apart
from tests.benchmarks import train_step_gpu
from tests.benchmarks.record import Ratio, Timings, alternate, measured_before, record
from tests.benchmarks.training_memory import Memory, MemoryCase
from tests.benchmarks.training_step import WAYS, Shape, batch, denoiser, gradient_norm

LARGE, SMALL = 126_464, 2_048
HALF, FULL = 0.5, 1.0
ROW_BY_ROW = "a row a backward"
_SMALL_REPEATS = 3
"""Times as many repetitions with the small vocabulary, whose steps are short."""
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def timed(args: argparse.Namespace, vocabulary: int, supervised: float, ways: Sequence[str]) -> tuple[Timings, Any]:
    """Seconds of each way, and the loss and the gradient's norm that each has found."""
    model = denoiser(Shape(vocabulary=vocabulary, hidden=args.hidden, layers=args.layers, intermediate=3 * args.hidden))
    given = batch(
        Shape(vocabulary=vocabulary), rows=args.rows, prompt=args.prompt, response=args.response, supervised=supervised
    )
    found = {way: [float(WAYS[way](model, given)), gradient_norm(model)] for way in ways}

    def step(way: str) -> None:
        WAYS[way](model, given)
        model.zero_grad(set_to_none=True)

    def run(way: str) -> Any:
        return lambda: step(way)

    calls = {way: run(way) for way in ways}
    repeats = args.repeats if vocabulary == args.large else _SMALL_REPEATS * args.repeats
    with large_tensors_apart():
        return alternate(calls, repeats=repeats, warm_up=0, clock=_CLOCKS[args.clock]), found


def peak(args: argparse.Namespace, vocabulary: int, way: str, at_once: int) -> Memory:
    """Of a process of its own."""
    case = MemoryCase(
        way=way,
        vocabulary=vocabulary,
        hidden=args.hidden,
        layers=args.layers,
        rows=args.rows,
        prompt=args.prompt,
        response=args.response,
        at_once=at_once,
    )
    command = [sys.executable, "-m", "tests.benchmarks.training_memory", json.dumps(asdict(case)), str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def times(args: argparse.Namespace) -> dict[str, Any]:
    """Of every vocabulary and share."""
    measured: dict[str, Any] = {}
    for vocabulary in (args.large, SMALL):
        for supervised in (HALF, FULL):
            ways = ["redraft", "bare", "plain", *(["torch"] if vocabulary == args.large else [])]
            timings, found = timed(args, vocabulary, supervised, ways)
            name = f"vocabulary {vocabulary:,}, {supervised:.0%} supervised"
            measured[name] = {"seconds": timings.as_json, "loss_and_gradient_norm": found}
            sys.stderr.write(f"{name}: {measured[name]}\n")
    return measured


def time_ratios(measured: dict[str, Any]) -> list[Ratio]:
    """Of what `times` has measured."""
    ratios = []
    for name, row in measured.items():
        took = Timings(of=row["seconds"])
        bound = 1.10 if name.endswith(f"{HALF:.0%} supervised") else None
        ratios += [
            Ratio(what=f"time over bare, {name}", value=took.ratio("redraft", "bare"), bound=bound, kind="at most"),
            Ratio(
                what=f"time of plain (the batch at once, logits everywhere) over ours, {name}",
                value=took.ratio("plain", "redraft"),
            ),
        ]
        if "torch" in took.of:
            what = f"time with torch's linear_cross_entropy over ours, {name}"
            ratios.append(Ratio(what=what, value=took.ratio("torch", "redraft")))
    return ratios


def peaks(args: argparse.Namespace) -> dict[str, Any]:
    """Bytes, of both vocabularies and all ways."""
    measured: dict[str, Any] = {}
    for vocabulary in (args.large, SMALL):
        found = {way: peak(args, vocabulary, way, 0) for way in ("redraft", "bare", "plain", "plain_rows")}
        found |= {f"{way}, {ROW_BY_ROW}": peak(args, vocabulary, way, 1) for way in ("redraft", "plain")}
        name = f"vocabulary {vocabulary:,}, 50% supervised"
        measured[name] = {way: asdict(memory) | {"step": memory.step} for way, memory in found.items()}
        sys.stderr.write(f"{name}: {measured[name]}\n")
    return measured


def memory_ratios(measured: dict[str, Any], large: int) -> list[Ratio]:
    """Of what `peaks` has measured."""
    ratios = []
    for name, row in measured.items():
        of = {
            way: Memory(before=found["before"], loaded=found["loaded"], peak=found["peak"])
            for way, found in row.items()
        }
        ours, plain = of["redraft"], of["plain"]
        ours_by_row, plain_by_row = (of[f"{way}, {ROW_BY_ROW}"] for way in ("redraft", "plain"))
        bound = 0.5 if name.startswith(f"vocabulary {large:,}") else None
        for what, value, most in (
            ("over that of plain (the batch at once, logits everywhere)", ours.step / plain.step, bound),
            (
                "above the weights over that of plain (the batch at once)",
                ours.above_weights / plain.above_weights,
                None,
            ),
            ("over that of plain with rows one at a time and one backward", ours.step / of["plain_rows"].step, None),
            (f"over that of plain, {ROW_BY_ROW} in both", ours_by_row.step / plain_by_row.step, None),
        ):
            ratios.append(Ratio(what=f"peak memory {what}, {name}", value=value, bound=most, kind="at most"))
    return ratios


def main() -> int:
    """Run, write the JSON, and return 0 if every bound is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--large", type=int, default=LARGE)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--go-on", action="store_true", help="measure what the file does not have yet")
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "go_on")}
    if args.device == "cuda":
        measured, ratios = train_step_gpu.measure(args.repeats)
        return record(args.out, "train_step_gpu", settings=settings, measured=measured, ratios=ratios)
    known: dict[str, Any] = (measured_before(args.out, settings) if args.go_on else None) or {}
    seconds = known.get("time") or times(args)
    memory = known.get("memory_bytes") or peaks(args)  # last: it may be measured on a machine that has other work
    return record(
        args.out,
        "train_step",
        settings=settings,
        measured={"memory_bytes": memory, "time": seconds},
        ratios=[*memory_ratios(memory, args.large), *time_ratios(seconds)],
    )


if __name__ == "__main__":
    sys.exit(main())

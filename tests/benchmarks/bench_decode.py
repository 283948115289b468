"""Decoding against a plain implementation in the style of the published code, and against the least it can take.

python -m tests.benchmarks.bench_decode --out tests/results/benchmarks/decode.json
python -m tests.benchmarks.bench_decode --device cuda --out tests/results/benchmarks/decode_cuda.json

On the processor: hidden 512, 8 layers, random weights, 16 prompts of 64 tokens, 128 new tokens in 32 steps, frozen and
refining, at two vocabularies. (a) plain: one row at a time, logits at all positions, float64 softmax over all of them.
(b) limit: forwards of the same batch, and the head on the positions that may change. The three take turns, a step of
each. The small vocabulary, where ratios are near their bounds, is measured several times, and the median counts. With
--go-on, what the file has already is not measured again. Fails if a token differs from (a), or a ratio misses
its bound.
On a GPU: the 8B shape in bf16, how near its forwards come to the measured matmul rate, and drafts and tokens a second.
To fit into ten minutes, the limit is that of a few forwards, spread over the plan and multiplied, and many steps are
measured frozen alone. Both report how many rows a batch of another size changes in bf16. The file is written anew after
every measurement.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.decoding.loop import forbidden_tokens
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas, Step
from core.decoding.strategies import strategies
from core.heap import freed_memory_kept
from core.models.rows import Rows
from tests.benchmarks.plain_decode import (
    Shape,
    head_positions,
    least_work,
    plain_decode,
    prompts_of,
    random_model,
)
from tests.benchmarks.record import Ratio, Timings, in_turn, measured_before, record

SPEEDUP = {("refine", True): 2.0, ("freeze", True): 2.5, ("refine", False): 1.25, ("freeze", False): 1.25}
"""(policy, large vocabulary) -> the least that decoding must be faster than the plain implementation."""
LARGE = 100_000
OVERHEAD = 1.10
MFU = 0.55
GRID_BITS = 24
"""The plain implementation ranks confidences as they are: as near to it as the settings come."""
POLICIES = ("freeze", "refine")
MANY_STEPS = 64
"""On a GPU, more than these are measured frozen alone: refining takes as many forwards again."""
Prompts = list[list[int]]


def ours(
    model: Any, prompts: Prompts, *, length: int, steps: int, policy: str, pause: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """The project's decoding of all prompts as one batch; `pause` is called before each step but the first."""
    chosen = strategies(DecodeSettings.parse(f"steps={steps} {policy} grid_bits={GRID_BITS}"), model)
    canvas = chosen.canvas(model, prompts, response_length=length)
    reader = Paused(chosen.reader(model, None, response_length=length), pause)
    found = chosen.decode(reader, canvas, response_length=length)
    return [[int(token) for token in row] for row in found.token_ids_BR.tolist()]


@dataclass
class Paused:
    """A reader that pauses before each look but the first."""

    reader: Any
    pause: Callable[[], None]
    looks: int = 0

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        if self.looks:
            self.pause()
        self.looks += 1
        return self.reader.hidden(canvas, step, asked_N)

    def select(self, rows: Rows) -> "Paused":
        return Paused(self.reader.select(rows), self.pause, self.looks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call; of all that it started on a GPU."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare(model: Any, vocabulary: int, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """Decoding, the plain implementation and the limit on the same prompts, once, a step of each in turn."""
    prompts, sizes = prompts_of(args.rows, args.prompt), {"length": args.response, "steps": args.steps}
    refine, forbidden = policy == "refine", forbidden_tokens(model.tokenizer)
    found: dict[str, list[list[int]]] = {}

    def plain(pause: Callable[[], None]) -> None:
        found["plain"] = plain_decode(model, prompts, **sizes, refine=refine, forbidden=forbidden, pause=pause)

    def decoded(pause: Callable[[], None]) -> None:
        found["ours"] = ours(model, prompts, **sizes, policy=policy, pause=pause)

    def limit(pause: Callable[[], None]) -> None:
        least_work(model, prompts, **sizes, refine=refine, pause=pause)

    ours(model, prompts[:1], length=args.response, steps=1, policy=policy)  # the first call of anything is slow
    ways = {"ours": decoded, "limit": limit, "plain": plain}
    with freed_memory_kept():  # as drafting has it; all ways alike
        took = in_turn(ways, threads=args.threads)
    equal = sum(a == b for a, b in zip(found["ours"], found["plain"], strict=True))
    row = {
        "vocabulary": vocabulary,
        "policy": policy,
        "seconds": {way: [round(value, 3)] for way, value in took.items()},
        "rows_with_equal_tokens": equal,
        "rows": args.rows,
    }
    sys.stderr.write(f"{row}\n")
    return row


def ratios_of(row: dict[str, Any]) -> list[Ratio]:
    """What must hold of a comparison."""
    took, policy, large = Timings(of=row["seconds"]), row["policy"], row["vocabulary"] >= LARGE
    name = f"Decoding, {policy}, vocabulary {row['vocabulary']:,}"
    return [
        Ratio(what=f"{name}: rows with equal tokens", value=row["rows_with_equal_tokens"] / row["rows"], bound=1.0),
        Ratio(what=f"{name}: row by row / ours", value=took.ratio("plain", "ours"), bound=SPEEDUP[policy, large]),
        Ratio(what=f"{name}: ours / limit", value=took.ratio("ours", "limit"), bound=OVERHEAD, kind="at most"),
    ]


def changed_by_batch(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Rows of a small model whose tokens differ between batches of one row and a batch of all, of several lengths."""
    model = random_model(Shape(hidden=128, layers=4, heads=4, intermediate=384), device=args.device, dtype=dtype)
    prompts = [prompt[: 8 + index] for index, prompt in enumerate(prompts_of(16, 32))]
    sizes = {"length": 32, "steps": 8, "policy": "refine"}
    together = ours(model, prompts, **sizes)
    alone = [ours(model, [prompt], **sizes)[0] for prompt in prompts]
    differing = sum(a != b for a, b in zip(together, alone, strict=True))
    return {"dtype": str(dtype).removeprefix("torch."), "rows": len(prompts), "rows_that_differ": differing}


def batches(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[Ratio]]]:
    """What the size of a batch changes, which has no bound."""
    for dtype in (torch.float32, torch.bfloat16):
        yield {"what": "rows that the batch changes"} | changed_by_batch(args, dtype), []


def on_processor(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[Ratio]]]:
    """A measurement and its ratios, for each vocabulary and policy."""
    before: list[dict[str, Any]] = (measured_before(args.out, settings_of(args)) if args.go_on else None) or []
    known = {(row["vocabulary"], row["policy"]): row for row in before if "policy" in row}
    for vocabulary in args.vocabularies:
        model = random_model(_shape(args, vocabulary))
        wanted = 1 if vocabulary >= LARGE else args.rounds
        for policy in POLICIES:
            row = known.get((vocabulary, policy)) or compare(model, vocabulary, policy, args)
            while len(row["seconds"]["ours"]) < wanted:
                row = _together(row, compare(model, vocabulary, policy, args))
            yield row, ratios_of(row)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "device", "rounds", "go_on")}


def _together(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two measurements of one comparison."""
    seconds = {way: [*row["seconds"][way], *other["seconds"][way]] for way in row["seconds"]}
    equal = min(row["rows_with_equal_tokens"], other["rows_with_equal_tokens"])
    return {**row, "seconds": seconds, "rows_with_equal_tokens": equal}


def _shape(args: argparse.Namespace, vocabulary: int) -> Shape:
    return Shape(
        hidden=args.hidden,
        layers=args.layers,
        heads=args.heads,
        intermediate=args.intermediate,
        vocabulary=vocabulary,
    )


def on_gpu(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[Ratio]]]:
    """The 8B shape: a forward against the matmul rate, then whole decodings at several numbers of steps."""
    model = random_model(_shape(args, args.vocabularies[-1]), device=args.device, dtype=torch.bfloat16)
    prompts = prompts_of(args.rows, args.prompt)
    yield forward_rate(model, prompts, args)
    for steps in args.step_counts:
        for policy in POLICIES if steps <= MANY_STEPS else POLICIES[:1]:
            yield whole_decoding(model, prompts, steps, policy, args), []


def forward_rate(model: Any, prompts: Prompts, args: argparse.Namespace) -> tuple[dict[str, Any], list[Ratio]]:
    """A forward that scores the whole response, against the matmul rate."""
    shape = _shape(args, args.vocabularies[-1])
    rate = matmul_rate(args.device, args.matmul)
    forward = {"length": args.response, "steps": 1, "refine": True}
    least_work(model, prompts, **forward)
    took = min(seconds(lambda: least_work(model, prompts, **forward), args.device) for _ in range(args.repeats))
    tokens = args.rows * (args.prompt + args.response)
    scored = args.rows * head_positions(args.response, 1, refine=True)
    flops = 2 * (shape.backbone_parameters * tokens + shape.hidden * shape.vocabulary * scored)
    rate_reached = flops / took
    row = {
        "what": "forward",
        "seconds": round(took, 4),
        "tflops": round(rate_reached / 1e12, 1),
        "matmul_tflops": round(rate / 1e12, 1),
    }
    return row, [Ratio(what="Forward, 8B shape / bf16 matmul rate", value=rate_reached / rate, bound=MFU)]


def whole_decoding(model: Any, prompts: Prompts, steps: int, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a decoding, and of its forwards alone, of which a few are run."""
    took = seconds(lambda: ours(model, prompts, length=args.response, steps=steps, policy=policy), args.device)
    forwards = min(args.limit_forwards, steps)
    few = {"length": args.response, "steps": forwards, "refine": policy == "refine"}
    bare = seconds(lambda: least_work(model, prompts, **few), args.device) * steps / forwards
    return {
        "what": f"{steps} steps, {policy}",
        "seconds": round(took, 3),
        "limit_seconds": round(bare, 3),
        "limit_is": f"the seconds of {forwards} forwards x {steps / forwards:g}",
        "drafts_per_second": round(args.rows / took, 3),
        "tokens_per_second": round(args.rows * args.response / took, 1),
    }


def matmul_rate(device: str, size: int) -> float:
    """FLOPs a second of a square bf16 matmul, the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(a, b)
    return 2 * size**3 / min(seconds(lambda: torch.matmul(a, b), device) for _ in range(10))


def arguments() -> argparse.Namespace:
    """Sizes that are not given are those of the processor's benchmark, or of the GPU's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape-8b", action="store_true", help="the GPU's measurements on any device")
    parser.add_argument("--go-on", action="store_true", help="measure what the file does not have yet")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="measurements at a small vocabulary; the median counts")
    parser.add_argument("--repeats", type=int, default=2, help="forwards of the 8B shape, of which the best counts")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--step-counts", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--limit-forwards", type=int, default=6, help="forwards of the 8B shape's limit that are run")
    parser.add_argument("--matmul", type=int, default=8192)
    parser.add_argument("--response", type=int, default=128)
    for name in ("rows", "prompt", "hidden", "layers", "heads", "intermediate"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2048, 126_464])
    args = parser.parse_args()
    args.shape_8b |= args.device.startswith("cuda")
    small = {"rows": 16, "prompt": 64, "hidden": 512, "layers": 8, "heads": 8, "intermediate": 1536}
    large = {"rows": 32, "prompt": 1024, "hidden": 4096, "layers": 32, "heads": 32, "intermediate": 12288}
    for name, default in (large if args.shape_8b else small).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def main() -> int:
    """Run, write the JSON, and return 0 if every bound is kept."""
    args = arguments()
    torch.set_num_threads(args.threads)
    settings = settings_of(args)
    name = "decode_gpu" if args.shape_8b else "decode"
    measured: list[dict[str, Any]] = []
    ratios: list[Ratio] = []
    status = 0
    for row, of_row in chain((on_gpu if args.shape_8b else on_processor)(args), batches(args)):
        measured.append(row)
        ratios += of_row
        packages = ("torch", "transformers")
        status = record(args.out, name, settings=settings, measured=measured, ratios=ratios, packages=packages)
    return status


if __name__ == "__main__":
    sys.exit(main())

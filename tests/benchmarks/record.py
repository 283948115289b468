"""What every benchmark shares: repetitions that alternate, and one form of the JSON that it writes.

A figure on a machine that others use drifts, so each repetition runs all ways one after another, and a ratio is the
median over repetitions of the ratio within one. `tests.benchmarks.table` makes the README's table from the files.
"""

import gc
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil
import torch


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One figure of a benchmark, and what it must reach: no bound means that it is only reported."""

    what: str
    value: float
    bound: float | None = None
    kind: Literal["at least", "at most"] = "at least"
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Is the bound kept? True without one."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.kind == "at least" else self.value <= self.bound

    @property
    def as_json(self) -> dict[str, Any]:
        """With four significant digits."""
        value = float(f"{self.value:.4g}")
        return {"what": self.what, "value": value, "bound": self.bound, "kind": self.kind, "unit": self.unit}


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of each way, a list with one entry a repetition; entry k of every way is of repetition k."""

    of: Mapping[str, Sequence[float]]

    def seconds(self, way: str) -> float:
        """The median."""
        return statistics.median(self.of[way])

    def ratio(self, slow: str, quick: str) -> float:
        """How many times the seconds of `quick` those of `slow` are: the median of the repetitions' ratios."""
        return statistics.median(one / other for one, other in zip(self.of[slow], self.of[quick], strict=True))

    @property
    def as_json(self) -> dict[str, list[float]]:
        """With four significant digits."""
        return {way: [float(f"{value:.4g}") for value in values] for way, values in self.of.items()}


def alternate(
    ways: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Run all ways in turn, `warm_up` times unmeasured and then `repeats` times, every second time backwards.

    A way that computes on an accelerator has to wait for it. Garbage is collected before each run, not in it.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    collecting = gc.isenabled()
    try:
        for turn in range(-warm_up, repeats):
            for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                gc.collect()
                gc.disable()
                started = clock()
                ways[way]()
                took = clock() - started
                if turn >= 0:
                    seconds[way].append(took)
    finally:
        if collecting:
            gc.enable()
    return Timings(of=seconds)


def machine() -> dict[str, Any]:
    """What ran it. Accelerators are named if torch was imported."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["accelerator"] = torch.cuda.get_device_name()
    return found


def in_turn(ways: Mapping[str, Callable[[Callable[[], None]], object]], *, threads: int) -> dict[str, float]:
    """Seconds of long computations that take turns: each calls its argument after a step and then waits for the others.

    So that all see the same machine, where it drifts within one run of them. Who follows whom is drawn for every turn:
    what one leaves behind in the caches, and the threads that it lets spin, meets all others alike.
    """
    gates = {way: threading.Semaphore(0) for way in ways}
    seconds, waiting, rested = dict.fromkeys(ways, 0.0), deque(ways), list[str]()
    drawn = random.Random(0)

    def next_one() -> None:
        if not waiting:
            drawn.shuffle(rested)
            waiting.extend(rested)
            rested.clear()
        if waiting:
            gates[waiting.popleft()].release()

    def run(way: str) -> None:
        torch.set_num_threads(threads)
        gates[way].acquire()
        began = time.perf_counter()

        def pause() -> None:
            nonlocal began
            seconds[way] += time.perf_counter() - began
            rested.append(way)
            next_one()
            gates[way].acquire()
            began = time.perf_counter()

        try:
            ways[way](pause)
        finally:
            seconds[way] += time.perf_counter() - began
            next_one()

    with ThreadPoolExecutor(len(ways)) as pool:
        runs = [pool.submit(run, way) for way in ways]
        next_one()
        for one in runs:
            one.result()
    return seconds


def measured_before(out: Path, settings: Mapping[str, Any]) -> Any:
    """What a benchmark's file holds as measured, for a run that goes on; None: there is no such file.

    Raises:
        ValueError: it is of other settings, another machine or other versions.
    """
    if not out.is_file():
        return None
    found = json.loads(out.read_text())
    now = {"settings": dict(settings), "machine": machine()}
    versions = {name: platform.python_version() if name == "python" else version(name) for name in found["versions"]}
    if {name: found[name] for name in now} != now or found["versions"] != versions:
        raise ValueError(f"{out} was measured otherwise, or elsewhere: begin anew, without --go-on")
    return found["measured"]


def record(
    out: Path,
    benchmark: str,
    *,
    settings: Mapping[str, Any],
    measured: Any,
    ratios: Sequence[Ratio],
    packages: Sequence[str] = ("numpy", "torch"),
) -> int:
    """Write a benchmark's JSON file and show its ratios. Returns the exit status: 1 if a bound is not kept.

    Args:
        out: the file, by custom tests/results/benchmarks/<benchmark>.json.
        benchmark: its name.
        settings: sizes, repetitions, threads.
        measured: what was measured, as JSON values: seconds (`Timings.as_json`), bytes, counts.
        ratios: the figures for the README's table.
        packages: distributions whose versions matter.
    """
    module = f"tests.benchmarks.{Path(sys.argv[0]).stem}"
    result = {
        "benchmark": benchmark,
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "settings": dict(settings),
        "measured": measured,
        "ratios": [ratio.as_json for ratio in ratios],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result["ratios"], indent=2) + "\n")
    return 0 if all(ratio.met for ratio in ratios) else 1


def _processor() -> str:
    """The processor's name where Linux tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

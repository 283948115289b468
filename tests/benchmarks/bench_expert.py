"""Requests a second of the expert's client, beside a bare `AsyncOpenAI` loop over aiohttp and the ideal.

python -m tests.benchmarks.bench_expert --out tests/results/benchmarks/expert.json [--requests 1280] [--repeats 3]

64 requests in flight against a server that only waits (tests.benchmarks.slow_expert), 200 ms in the middle. `redraft`
is `ExpertClient.ask` with everything it does for a caller: images from the store and checked, claims, the reply judged
and recorded in SQLite, progress. `bare` is what a script would do: a semaphore of 64, `chat.completions.create` and
the SDK's own retries. They take turns in one process; ratios are of the medians. `ideal` is concurrency / mean latency;
`ideal_of_run` counts the wait for the last replies of so many requests, too. Processor time is that of the process,
all threads. Memory is measured in a process of its own for each size.
"""

import argparse
import asyncio
import heapq
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openai
from PIL import Image

from core.claims import open_database
from core.expert.client import ExpertClient, Progress
from core.expert.ledger import Ledger, Reply
from core.expert.request import ExpertRequest, build_request
from core.expert.settings import ExpertSettings
from core.store import Store, image_path, open_store, put_image, read_verified
from tests.benchmarks.slow_expert import BEHAVIOURS

CONCURRENCY = 64
CPU_TARGET_MS = 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is sent, how the server behaves, and the rate to reach as a share of the bare loop's."""

    name: str
    behaviour: str
    target: float
    images: bool = False


CASES = (
    Case(name="small bodies", behaviour="steady", target=0.95),
    Case(name="1 MB images", behaviour="steady", target=0.90, images=True),
    Case(name="p99 = 10 x p50", behaviour="long_tail", target=0.90),
    Case(name="5 % 429 with Retry-After, 1 % malformed", behaviour="faulty", target=0.85),
)


@contextmanager
def slow_expert() -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.slow_expert"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.communicate("")


def put_images(store: Store, count: int) -> list[str]:
    """The shas of `count` different PNGs of 1 MB."""
    draw = np.random.default_rng(0)
    shas = []
    for _ in range(count):
        data = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (576, 578, 3), dtype=np.uint8)).save(data, "PNG", compress_level=1)
        shas.append(put_image(store, data.getvalue()))
    return shas


def make_requests(settings: ExpertSettings, count: int, shas: Sequence[str]) -> list[ExpertRequest]:
    """`count` different requests; with images they take turns."""
    return [
        build_request(
            settings,
            question="Please describe the image.",
            reference=f"Two red buses stand beside a tree, and a man in a white shirt waits for the bus {i}.",
            prediction=f"Two blue buses stand beside a tree, and a man in a white shirt waits for the bus {i}.",
            image_sha=shas[i % len(shas)] if shas else None,
        )
        for i in range(count)
    ]


def ask_redraft(settings: ExpertSettings, requests: Sequence[ExpertRequest], store: Store, folder: Path) -> list[Reply]:
    """The whole way, with a ledger of its own."""
    seen: list[Progress] = []
    engine = open_database(f"sqlite:///{folder / 'state.db'}")
    client = ExpertClient(settings, ledger=Ledger(engine))
    replies = client.ask(requests, lambda sha: read_verified(store, image_path(sha), sha), on_progress=seen.append)
    engine.dispose()
    assert seen[-1].done == len(requests)
    return replies


def ask_bare(settings: ExpertSettings, requests: Sequence[ExpertRequest], store: Store, _folder: Path) -> list[Any]:
    """As a script would."""

    async def loop() -> list[Any]:
        http = openai.DefaultAioHttpClient()
        client = openai.AsyncOpenAI(api_key="none", base_url=settings.base_url, http_client=http, max_retries=10)
        free = asyncio.Semaphore(settings.concurrency)

        async def one(request: ExpertRequest) -> Any:
            async with free:
                image = store.read(image_path(request.image_sha)) if request.image_sha else None
                return await client.chat.completions.create(**request.body(image))

        async with client:
            return await asyncio.gather(*(one(request) for request in requests))

    return asyncio.run(loop())


ARMS: dict[str, Callable[..., list[Any]]] = {"redraft": ask_redraft, "bare": ask_bare}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share. `shas`: the images in the store."""

    address: str
    store: Store
    shas: Sequence[str]
    requests: int
    repeats: int

    def measure(self, arm: str, case: Case, run: int) -> dict[str, float]:
        """One run: requests a second, milliseconds of processor time a request, and how the requests ended."""
        address = f"{self.address}/{case.behaviour}/{arm}-{run}-{case.images}/v1"
        settings = ExpertSettings(base_url=address, concurrency=CONCURRENCY, max_attempts=12, breaker=10**6)
        requests = make_requests(settings, self.requests, self.shas if case.images else ())
        with tempfile.TemporaryDirectory() as folder:
            started, processor = time.perf_counter(), time.process_time()
            replies = ARMS[arm](settings, requests, self.store, Path(folder))
            seconds, processor = time.perf_counter() - started, time.process_time() - processor
        if arm == "redraft":
            answered = sum(reply.status == "answered" for reply in replies)
            failed = sum(reply.status == "failed" and bool(reply.error) for reply in replies)
        else:
            answered = sum(reply.choices[0].message.content.startswith("{") for reply in replies)
            failed = len(replies) - answered
        return {
            "per_second": self.requests / seconds,
            "cpu_ms": 1000 * processor / self.requests,
            "answered": answered,
            "failed": failed,
        }

    def compare(self, case: Case) -> dict[str, Any]:
        """Both arms in turns, and what follows from their medians."""
        runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for run in range(self.repeats):
            for arm in list(ARMS) if run % 2 else list(reversed(ARMS)):
                runs[arm].append(self.measure(arm, case, run))
        rate, cpu = (
            {arm: statistics.median(run[name] for run in found) for arm, found in runs.items()}
            for name in ("per_second", "cpu_ms")
        )
        latencies = BEHAVIOURS[case.behaviour].latencies()
        ideal = CONCURRENCY / statistics.fmean(latencies)
        return {
            "case": case.name,
            "redraft_per_second": round(rate["redraft"], 1),
            "bare_per_second": round(rate["bare"], 1),
            "ideal_per_second": round(ideal, 1),
            "ideal_of_run_per_second": round(self.requests / makespan_s(latencies[: self.requests]), 1),
            "of_bare": round(rate["redraft"] / rate["bare"], 3),
            "target": case.target,
            "of_ideal": round(rate["redraft"] / ideal, 3),
            "bare_of_ideal": round(rate["bare"] / ideal, 3),
            "redraft_cpu_ms": round(cpu["redraft"], 2),
            "bare_cpu_ms": round(cpu["bare"], 2),
            "beyond_bare_cpu_ms": round(cpu["redraft"] - cpu["bare"], 2),
            "rates": {arm: [round(run["per_second"], 1) for run in found] for arm, found in runs.items()},
            "ended": [{name: int(run[name]) for name in ("answered", "failed")} for run in runs["redraft"]],
        }


def makespan_s(latencies: Sequence[float]) -> float:
    """Seconds until the last reply if a request is sent whenever another ends, and nothing else takes time."""
    free = [0.0] * CONCURRENCY
    for latency in latencies:
        heapq.heapreplace(free, free[0] + latency)
    return max(free)


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process; getrusage would count what the parent had at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def child(address: str, count: int) -> None:
    """Memory of one `ask`: what the caller's list takes, and what the peak adds to it, the list of replies included."""
    with tempfile.TemporaryDirectory() as name:
        store, folder = open_store(name), Path(name)
        warm = ExpertSettings(base_url=f"{address}/quick/warm-{count}/v1", concurrency=CONCURRENCY)
        ask_redraft(warm, make_requests(warm, 200, ()), store, folder)
        settings = warm.model_copy(update={"base_url": f"{address}/quick/memory-{count}/v1", "model": "memory"})
        before = memory_mb("VmRSS")
        requests = make_requests(settings, count, ())
        listed = memory_mb("VmRSS")
        replies = ask_redraft(settings, requests, store, folder)
    assert len(replies) == count
    found = {"callers_list_mb": listed - before, "added_at_peak_mb": memory_mb("VmHWM") - listed}
    rounded = {name: round(value, 1) for name, value in found.items()}
    sys.stdout.write(json.dumps({"requests": count, **rounded}) + "\n")


def memory(address: str, count: int) -> dict[str, Any]:
    """`child` in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_expert", "--child", address, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Run, write the JSON, and return 0 if the targets are reached."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1280, help="requests of one run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="0123", help="which of the cases, by their places")
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 10_000], help="requests, for peak memory")
    args = parser.parse_args()
    with slow_expert() as address, tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        shas = put_images(store, 16)
        bench = Bench(address=address, store=store, shas=shas, requests=args.requests, repeats=args.repeats)
        rows = [bench.compare(CASES[int(place)]) for place in args.cases]
        sizes = [memory(address, count) for count in args.memory]
    names = ("openai", "aiohttp", "httpx2", "sqlalchemy")
    result = {
        "benchmark": "expert",
        "command": "python -m tests.benchmarks.bench_expert " + " ".join(sys.argv[1:]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "concurrency": CONCURRENCY,
        "requests": args.requests,
        "cases": rows,
        "memory": sizes,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    fast = all(row["of_bare"] >= row["target"] for row in rows)
    complete = all(sum(ended.values()) == args.requests for row in rows for ended in row["ended"])
    return 0 if fast and complete and rows[0]["beyond_bare_cpu_ms"] <= CPU_TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())

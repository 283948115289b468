"""Requests a second of the expert's client, beside a bare `AsyncOpenAI` loop over aiohttp and the ideal.

python -m tests.benchmarks.bench_expert --out tests/results/benchmarks/expert.json [--requests 1280] [--repeats 3]

64 requests in flight against a server that only waits (tests.benchmarks.slow_expert), 200 ms in the middle. `redraft` is
`ExpertClient.ask` with everything it does for a caller: images from the store and checked, claims, the reply judged and
recorded in SQLite, progress. `bare` is what a script would do: a semaphore of 64, `chat.completions.create` and the
SDK's own retries. Both take turns in one process; ratios are of the medians. `ideal` is concurrency / mean latency.
Processor time is that of the process, all threads. Memory is measured in a process of its own for each size.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import resource
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
import psutil
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


def measure(
    arm: str, case: Case, address: str, run: int, count: int, store: Store, shas: Sequence[str]
) -> dict[str, float]:
    """One run of one arm: requests a second, and milliseconds of processor time a request."""
    settings = ExpertSettings(
        base_url=f"{address}/{case.behaviour}/{arm}{run}/v1", concurrency=CONCURRENCY, max_attempts=12, breaker=10**6
    )
    requests = make_requests(settings, count, shas if case.images else ())
    with tempfile.TemporaryDirectory() as folder:
        started, processor = time.perf_counter(), time.process_time()
        replies = ARMS[arm](settings, requests, store, Path(folder))
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    if arm == "redraft":
        accounted = sum(reply.status == "answered" or reply.error is not None for reply in replies)
        answered = sum(reply.status == "answered" for reply in replies)
    else:
        accounted = len(replies)
        answered = sum(reply.choices[0].message.content.startswith("{") for reply in replies)
    return {
        "per_second": count / seconds,
        "cpu_ms": 1000 * processor / count,
        "answered": answered,
        "accounted": accounted,
    }


def compare(
    case: Case, address: str, first_run: int, args: argparse.Namespace, store: Store, shas: Sequence[str]
) -> dict[str, Any]:
    """Both arms in turns, and what follows from their medians."""
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for run in range(first_run, first_run + args.repeats):
        order = list(ARMS) if run % 2 else list(reversed(ARMS))
        for arm in order:
            runs[arm].append(measure(arm, case, address, run, args.requests, store, shas))
    median = {
        arm: {name: statistics.median(run[name] for run in found) for name in ("per_second", "cpu_ms")}
        for arm, found in runs.items()
    }
    ideal = CONCURRENCY / statistics.fmean(BEHAVIOURS[case.behaviour].latencies())
    return {
        "case": case.name,
        "redraft_per_second": round(median["redraft"]["per_second"], 1),
        "bare_per_second": round(median["bare"]["per_second"], 1),
        "ideal_per_second": round(ideal, 1),
        "of_bare": round(median["redraft"]["per_second"] / median["bare"]["per_second"], 3),
        "target": case.target,
        "of_ideal": round(median["redraft"]["per_second"] / ideal, 3),
        "bare_of_ideal": round(median["bare"]["per_second"] / ideal, 3),
        "redraft_cpu_ms": round(median["redraft"]["cpu_ms"], 2),
        "bare_cpu_ms": round(median["bare"]["cpu_ms"], 2),
        "beyond_bare_cpu_ms": round(median["redraft"]["cpu_ms"] - median["bare"]["cpu_ms"], 2),
        "rates": {arm: [round(run["per_second"], 1) for run in found] for arm, found in runs.items()},
        "answered": [int(run["answered"]) for run in runs["redraft"]],
        "accounted": all(run["accounted"] == args.requests for run in runs["redraft"]),
    }


def child(address: str, count: int) -> None:
    """Memory of one `ask`: what the caller's list takes, and what the peak adds to it, in MB."""
    process = psutil.Process()
    settings = ExpertSettings(base_url=f"{address}/quick/memory{count}/v1", concurrency=CONCURRENCY)
    with tempfile.TemporaryDirectory() as folder:
        warm = ExpertSettings(base_url=f"{address}/quick/warm{count}/v1", concurrency=CONCURRENCY)
        ask_redraft(warm, make_requests(warm, 200, ()), open_store(folder), Path(folder))
        before = process.memory_info().rss
        requests = make_requests(settings, count, ())
        listed = process.memory_info().rss
        replies = ask_redraft(settings, requests, open_store(folder), Path(folder))
    assert len(replies) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"requests": count, "callers_list_mb": (listed - before) / 1e6, "added_at_peak_mb": (peak - listed) / 1e6}
    sys.stdout.write(json.dumps({name: round(value, 1) for name, value in found.items()}) + "\n")


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
        chosen = [CASES[int(place)] for place in args.cases]
        rows = [compare(case, address, 100 * place, args, store, shas) for place, case in enumerate(chosen)]
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
    fast = all(row["of_bare"] >= row["target"] and row["accounted"] for row in rows)
    return 0 if fast and rows[0]["beyond_bare_cpu_ms"] <= CPU_TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())

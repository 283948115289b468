"""The reference expert, and its own record of who asked it what."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from core.expert.answering import ChatRequest, completion
from core.expert.server import create_app
from core.expert.settings import ReferenceSettings


class Asked(NamedTuple):
    """A request that came: the key of who sent it (its Authorization), its body's digest, and seconds of when."""

    worker: str
    digest: str
    at: float


class Record:
    """What the expert was asked, in order. `came` tells of every request, `most` is how many were open at once."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.bodies: dict[str, bytes] = {}
        self.answered: list[str] = []
        self.open = self.most = 0
        self.came = threading.Condition()

    def count(self, worker: str) -> int:
        return sum(one.worker == worker for one in self.asked)

    def wait_for(self, worker: str, n: int, *, unless: Callable[[], bool]) -> None:
        """Return when `worker` has sent n requests, or `unless` has become true."""
        with self.came:
            while self.count(worker) < n and not unless():
                self.came.wait(0.1)


def digest_of(body: dict[str, Any]) -> str:
    """What two requests of the same question have in common."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _by_rule(_prediction: str) -> None:
    return None


def _completion(body: dict[str, Any], words: str) -> Response:
    return JSONResponse(completion(ChatRequest.model_validate(body), words, None))


@contextmanager
def recording_expert(answer: Callable[[str], str | None] = _by_rule, **faults: float) -> Iterator[tuple[str, Record]]:
    """Its address and its record. It takes any key. Where `answer` makes words of a draft, it says these."""
    record, app = Record(), create_app(ReferenceSettings(**faults))

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        body = json.loads(raw := await request.body())
        worker = request.headers["authorization"].removeprefix("Bearer ")
        with record.came:
            record.bodies[digest_of(body)] = raw
            record.asked.append(Asked(worker, digest_of(body), time.monotonic()))
            record.open += 1
            record.most = max(record.most, record.open)
            record.came.notify_all()
        words = answer(json.loads(body["messages"][-1]["content"][-1]["text"])["prediction"])
        response = await call_next(request) if words is None else _completion(body, words)
        with record.came:
            record.open -= 1
            record.answered.append(digest_of(body))
        return response

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1", record
    server.should_exit = True
    thread.join(5)
    server.force_exit = True

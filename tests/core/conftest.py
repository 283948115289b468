"""The reference expert and an S3 service over real HTTP."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from core.expert.server import make_server
from core.expert.settings import ReferenceSettings


@dataclass(frozen=True)
class RunningExpert:
    """A server on 127.0.0.1 and a free port."""

    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/v1"

    @property
    def stats(self) -> dict[str, int]:
        return httpx.get(self.url.replace("/v1", "/stats"), trust_env=False, verify=False).json()


@pytest.fixture
def start_expert() -> Iterator[Callable[..., RunningExpert]]:
    """start_expert(api_key=None, **faults) -> RunningExpert, stopped when the test ends."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(api_key: str | None = None, **faults: float) -> RunningExpert:
        server = make_server(ReferenceSettings(**faults), api_key=SecretStr(api_key) if api_key else None)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return RunningExpert(server)

    yield start
    for server, _ in running:
        server.should_exit = True
    for server, thread in running:
        thread.join(5)
        server.force_exit = True


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of moto's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()

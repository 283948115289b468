"""What the tests of flows share."""

import threading
from collections.abc import Iterator

import pytest

from core.expert.server import make_server


@pytest.fixture(scope="session")
def expert_url() -> Iterator[str]:
    """The reference expert over HTTP."""
    server = make_server()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()

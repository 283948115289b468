"""What the tests of flows share."""

import threading
from collections.abc import Iterator

import pytest

from core.config import PlaceSettings, RunConfig
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


@pytest.fixture
def own_place(running_servers, monkeypatch, tmp_path, servers_home) -> PlaceSettings:
    """A store and a database of the test's own, with the servers that all share."""
    monkeypatch.setenv("REDRAFT_HOME", str(servers_home))
    return RunConfig().place.model_copy(
        update={
            "store": str(tmp_path / "store"),
            "database": f"sqlite:///{tmp_path}/state.db",
            "prefect_url": f"{running_servers.prefect_ui}/api",
            "mlflow_url": running_servers.mlflow_uri,
        }
    )

"""What all tests share."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.servers import Servers, servers

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def running_servers(servers_home: Path) -> Iterator[Servers]:
    """A real Prefect and a real MLflow server for the whole session, and the environment for them."""
    with servers(servers_home) as found:
        before = json.loads((servers_home / "servers.json").read_text())["servers"].values()
        trees = [psutil.Process(entry["pid"]) for entry in before]
        trees += [child for leader in trees for child in leader.children(recursive=True)]
        yield found
    left = [process for process in trees if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, "the servers and all their children ended"

"""The Prefect and MLflow servers of this machine: started if none is configured, joined if running, stopped at the end.

`servers.json` in REDRAFT_HOME lists the running servers and the processes that use them, guarded by a file lock: a
second process joins, the last one out stops them. Entries of processes that are gone are dropped on the way.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
from filelock import FileLock, Timeout

from core.errors import ServerError
from flows.environment import applied, environment
from flows.processes import Process, alive, free_port, last_lines, start, stop, this_process

START_SECONDS = 240.0
"""How long a server may take until it answers: 8 s on an idle machine with two cores, 90 s on an overloaded one."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Where the servers are."""

    prefect_api_url: str
    prefect_ui: str
    mlflow_uri: str


@dataclass(frozen=True, kw_only=True)
class _Server:
    """A running server of ours."""

    process: Process
    port: int

    def to_json(self) -> dict[str, float]:
        return {"pid": self.process.pid, "created": self.process.created, "port": self.port}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How one kind of server is started and asked for its health."""

    name: str
    api: str  # path below the root that clients use
    command: Callable[[Path, int], list[str]]
    env: Callable[[Path, int], dict[str, str]]

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}{self.api}"


def _prefect_command(_: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def _prefect_env(folder: Path, port: int) -> dict[str, str]:
    return {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        # Without it the pages ask port 4200, whatever port the server has.
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }


def _mlflow_command(folder: Path, port: int) -> list[str]:
    store, artifacts = f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts"
    options = ["--backend-store-uri", store, "--serve-artifacts", "--artifacts-destination", artifacts.as_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return [sys.executable, "-m", "mlflow", "server", *options, *address]


def _mlflow_env(_: Path, port: int) -> dict[str, str]:
    # Without the first, ten more processes for features that nobody uses here.
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


PREFECT = _Kind(name="prefect", api="/api", command=_prefect_command, env=_prefect_env)
MLFLOW = _Kind(name="mlflow", api="", command=_mlflow_command, env=_mlflow_env)


@contextmanager
def servers(home: Path, *, prefect_url: str | None = None, mlflow_url: str | None = None) -> Iterator[Servers]:
    """The servers and the environment for them, for as long as the context lasts.

    A configured URL is only checked; for the others a server under `home` is started or joined. Raises ServerError.
    """
    home = home.resolve()
    wanted = tuple(kind for kind, url in ((PREFECT, prefect_url), (MLFLOW, mlflow_url)) if url is None)
    configured = {
        kind.name: _reachable(kind, url) for kind, url in ((PREFECT, prefect_url), (MLFLOW, mlflow_url)) if url
    }
    with _ending_on_sigterm(), _joined(home, wanted) as ports:
        urls = configured | {kind.name: kind.url(ports[kind.name]) for kind in wanted}
        found = Servers(
            prefect_api_url=urls["prefect"],
            prefect_ui=urls["prefect"].removesuffix("/api"),
            mlflow_uri=urls["mlflow"],
        )
        with applied(environment(home, prefect_api_url=found.prefect_api_url, mlflow_uri=found.mlflow_uri)):
            yield found


def wait_for_interrupt() -> None:
    """Return at Ctrl-C: inside `servers(...)` it keeps the servers running until then (SIGTERM ends it as well)."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _reachable(kind: _Kind, url: str) -> str:
    """The configured address in the form that clients want, after a first answer from it."""
    address = url.rstrip("/")
    if not address.startswith(("http://", "https://")):
        msg = f"The configured {kind.name} address {url!r} is no http(s) URL; correct it, or remove it for a local one."
        raise ServerError(msg)
    if kind is PREFECT and "/api" not in address:
        address += kind.api
    problem = _health(address, own=False)
    if problem:
        msg = (
            f"The configured {kind.name} server {address} does not answer ({problem}). "
            f"Start it, correct the address, or remove it from the configuration to use a local one."
        )
        raise ServerError(msg)
    return address


def _health(url: str, *, own: bool, timeout: float = 10.0) -> str:
    """What is wrong with the server at `url`; empty if it is well. A server that wants credentials is well."""
    try:
        answer = httpx.get(f"{url}/health", timeout=timeout, trust_env=not own)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"
    return "" if answer.status_code in (200, 401, 403) else f"HTTP {answer.status_code} from {url}/health"


@contextmanager
def _joined(home: Path, wanted: tuple[_Kind, ...]) -> Iterator[dict[str, int]]:
    """Be one of the users of the servers; the ports by name. The last user stops them."""
    if not wanted:
        yield {}
        return
    registry = _Registry(home)
    me = this_process()
    with registry.locked():
        running, users = registry.read()
        running |= _started(home, [kind for kind in wanted if not _well(kind, running)], running)
        registry.write(running, [*users, me])
    try:
        yield {name: server.port for name, server in running.items()}
    finally:
        with registry.locked():
            known, users = registry.read()
            running |= known  # what was joined is stopped also if the folder was deleted meanwhile
            mine = [user for user in users if user.pid == me.pid]
            users = [user for user in users if user.pid != me.pid] + mine[1:]  # this process may be here several times
            if not users:
                stop([server.process for server in running.values()])
                running = {}
            registry.write(running, users)


def _well(kind: _Kind, running: dict[str, _Server]) -> bool:
    server = running.get(kind.name)
    return server is not None and alive(server.process) and not _health(kind.url(server.port), own=True)


def _started(home: Path, kinds: list[_Kind], before: dict[str, _Server]) -> dict[str, _Server]:
    """Start the servers of these kinds side by side and wait until all of them answer; all or none."""
    stop([before[kind.name].process for kind in kinds if kind.name in before])  # alive, but it does not answer
    begun = {kind.name: _begin(home, kind, before.get(kind.name)) for kind in kinds}
    try:
        for kind in kinds:
            _await_health(kind, begun[kind.name], home)
    except BaseException:
        stop([server.process for server in begun.values()])
        raise
    return begun


def _begin(home: Path, kind: _Kind, before: _Server | None) -> _Server:
    folder = home / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port(before.port if before else None)
    # A shell that points elsewhere must not lead the server to another server or database.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API_")}
    env = inherited | environment(home) | kind.env(folder, port)
    env.pop("MLFLOW_TRACKING_URI", None)
    process = start(kind.command(folder, port), env=env, cwd=folder, log=_log(home, kind))
    return _Server(process=process, port=port)


def _await_health(kind: _Kind, server: _Server, home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while problem := _health(kind.url(server.port), own=True, timeout=2.0):
        if not alive(server.process):
            problem = "it ended by itself"
        elif time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        log = _log(home, kind)
        msg = f"The {kind.name} server did not start ({problem}). The end of {log}:\n{last_lines(log)}"
        raise ServerError(msg)


def _log(home: Path, kind: _Kind) -> Path:
    return home / "logs" / f"{kind.name}.log"


class _Registry:
    """servers.json: what runs and who uses it. Read and write it under the lock alone."""

    def __init__(self, home: Path) -> None:
        self._path = home / "servers.json"
        self._lock = FileLock(home / "servers.lock", timeout=2 * START_SECONDS)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                yield
        except Timeout as error:
            msg = f"Another process has held {error.lock_file} for minutes; end it, or delete that file if none runs."
            raise ServerError(msg) from error

    def read(self) -> tuple[dict[str, _Server], list[Process]]:
        """The servers, also one that died (its successor takes its port), and the users that still live."""
        try:
            entries = json.loads(self._path.read_text())
            running = {
                name: _Server(process=Process(entry["pid"], entry["created"]), port=entry["port"])
                for name, entry in entries["servers"].items()
            }
            users = [Process(user["pid"], user["created"]) for user in entries["users"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or cut short by a full disk
            return {}, []
        return running, [user for user in users if alive(user)]

    def write(self, running: dict[str, _Server], users: list[Process]) -> None:
        entries = {
            "servers": {name: server.to_json() for name, server in running.items()},
            "users": [{"pid": user.pid, "created": user.created} for user in users],
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(entries, indent=1))
        partial.replace(self._path)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack (exit code 143), so that the servers are left properly."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""What surrounds a verb: REDRAFT_HOME, servers, the reference expert, and the workplace that tasks get."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

import httpx

from core.config import PlaceSettings, RunConfig
from core.errors import ConfigError, ServerError
from core.interruption import interrupt, resume
from flows.environment import applied, environment
from flows.processes import free_port, last_lines, start, stop
from flows.servers import servers
from tasks.workplace import Workplace

_EXPERT_START_SECONDS = 60.0


def home() -> Path:
    """REDRAFT_HOME, by default .redraft in the current folder. Raises ConfigError if it is a file."""
    path = Path(os.environ.get("REDRAFT_HOME", ".redraft")).resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"REDRAFT_HOME is to be a folder, but {path} is a file: name another place, or delete it")
    return path


def workplace(
    settings: PlaceSettings,
    *,
    mlflow_uri: str | None = None,
    expert_url: str = "",
    devices: tuple[str, ...] = ("auto",),
) -> Workplace:
    """The addresses that tasks need, and the devices that they may use."""
    here = home()
    return Workplace(
        home=here,
        store_uri=settings.store or (here / "store").as_uri(),
        s3_endpoint=settings.s3_endpoint or None,
        database_url=settings.database or f"sqlite:///{here / 'state.db'}",
        mlflow_uri=mlflow_uri,
        experiment=settings.experiment,
        expert_url=expert_url,
        devices=devices,
    )


@contextmanager
def session(config: RunConfig, *, expert: bool = True) -> Iterator[Workplace]:
    """Servers and expert for one verb: started if none is configured, joined if running, stopped at the end.

    `expert`: does the verb ask the expert?
    """
    here, place = home(), config.place
    here.mkdir(parents=True, exist_ok=True)
    urls = {"prefect_url": place.prefect_url or None, "mlflow_url": place.mlflow_url or None}
    with (
        _orderly_interruption(),
        applied(environment(here)),
        ThreadPoolExecutor(1) as loader,
        reference_expert(here, needed=expert and not config.expert.base_url) as expert_url,
    ):
        loaded = loader.submit(import_module, "flows.pipeline")  # seconds of imports, while the servers start
        with servers(here, **urls) as running:
            loaded.result()
            await_expert(here, expert_url)
            yield workplace(place, mlflow_uri=running.mlflow_uri, expert_url=expert_url, devices=config.compute.devices)


@contextmanager
def _orderly_interruption() -> Iterator[None]:
    """Ctrl-C ends in order what goes on in all threads: none of them hears of a signal by itself."""
    resume()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop_all(_signal: int, _frame: FrameType | None) -> None:
        interrupt()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop_all)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        resume()


@contextmanager
def reference_expert(here: Path, *, needed: bool) -> Iterator[str]:
    """The base URL of a reference expert that is starting; "" if an endpoint is configured."""
    if not needed:
        yield ""
        return
    port, log = free_port(), here / "logs" / "expert.log"
    command = [sys.executable, "-m", "flows.cli", "expert", "--port", str(port), "--beside", str(os.getpid())]
    process = start(command, env=os.environ | environment(here), cwd=here, log=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield url
    finally:
        stop([process])


def await_expert(here: Path, url: str) -> None:
    """Return when the reference expert answers. Raises ServerError if it does not."""
    deadline, log = time.monotonic() + _EXPERT_START_SECONDS, here / "logs" / "expert.log"
    while url and not _answers(url):
        if time.monotonic() > deadline:
            raise ServerError(f"The reference expert did not start. The end of {log}:\n{last_lines(log)}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False

"""A real vLLM server for tests: tiny checkpoints, made and served by the scripts of infra/vllm."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

SCRIPTS = Path(__file__).parents[3] / "infra" / "vllm"
NAME, KEY = "tiny", "sk-local-123"
CONTEXT = 8192
_ON_THE_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
_FLAGS = ("--dtype", "bfloat16", "--enforce-eager", "--max-model-len", str(CONTEXT), "--max-num-seqs", "64")
_START_S = 500


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server. origin: without /v1."""

    origin: str

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    @property
    def answered(self) -> int:
        """Requests that it has answered so far, by its own count."""
        lines = httpx.get(f"{self.origin}/metrics", trust_env=False, timeout=60).text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total{"))


def make_models(environment: Path, folder: Path) -> None:
    """folder/text and folder/vision."""
    command = [environment / "bin" / "python", SCRIPTS / "tiny_models.py", folder]
    subprocess.run(command, check=True)


@contextmanager
def served(environment: Path, checkpoint: Path, log: Path) -> Iterator[Served]:
    """The checkpoint at a free port, until the block ends; what the server says is in `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"REDRAFT_VLLM_ENV": str(environment), "VLLM_API_KEY": KEY, **_ON_THE_CPU}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [SCRIPTS / "serve.sh", checkpoint, NAME, str(port), *_FLAGS],
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children, which end with it
        )
        try:
            server = Served(origin=f"http://127.0.0.1:{port}")
            _wait(process, server, log)
            yield server
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], server: Served, log: Path) -> None:
    """Return when it answers."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"vLLM ended: {log.read_text()[-3000:]}"
        try:
            if httpx.get(f"{server.origin}/health", trust_env=False, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)  # it says nowhere that it will be ready
    raise TimeoutError(f"vLLM does not answer: {log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what did not end with it
    process.wait()

"""A command that is interrupted says so, and one that is killed leaves no expert behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.clock import eventually

EXPERT = """
import sys, time
from pathlib import Path
from flows.session import await_expert, reference_expert
here = Path(sys.argv[1])
with reference_expert(here, needed=True) as url:
    await_expert(here, url)
    print(url, flush=True)
    time.sleep(600)
"""


@pytest.mark.timeout(600)
def test_an_interrupted_run_says_that_what_is_finished_is_kept(tmp_path):
    command = [sys.executable, "-m", "flows.cli", "run", "--config", "smoke"]
    environment = {**os.environ, "REDRAFT_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        said = []
        for line in run.stdout:
            if "\u2713" in line and not said:  # the first task is done
                run.send_signal(signal.SIGINT)
            said += [line] if said or "\u2713" in line else []
    assert run.returncode == 130
    assert "interrupted. What is finished is kept" in "".join(said)


def test_an_expert_ends_with_the_process_that_started_it(tmp_path: Path):
    command = [sys.executable, "-c", EXPERT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        url = starter.stdout.readline().strip()
        assert httpx.get(f"{url}/models").status_code == httpx.codes.OK
        starter.kill()  # and nobody has asked for its exit code yet
        assert eventually(lambda: ended(url), 30.0, every=0.2)


def ended(url: str) -> bool:
    try:
        httpx.get(f"{url}/models")
    except httpx.TransportError:
        return True
    return False

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tzlocal

from core.errors import ConfigError
from flows.servers import Servers
from tests.flows.served_flow import tick

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], object], seconds: float = 150.0) -> object:
    """The first true value of `condition`; it fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return value


def runs_of(name: str) -> list:
    from prefect import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])))


def deployment(name: str):
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"tick/{name}")


def test_deployed_cron_has_scheduled_runs(running_servers: Servers):
    from flows.serve import cron_schedule

    tick.to_deployment("minutes", schedule=cron_schedule("* * * * *")).apply()
    runs = wait_for(lambda: [run for run in runs_of("minutes") if run.state.name == "Scheduled"])
    assert all(run.auto_scheduled for run in runs)
    assert {run.expected_start_time.second for run in runs} == {0}


def test_cron_is_in_local_time(monkeypatch):
    from flows.serve import cron_schedule

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tzlocal.reload_localzone()  # it remembers its first answer
    assert cron_schedule("0 2 * * *").timezone == "Asia/Tokyo"
    monkeypatch.undo()
    tzlocal.reload_localzone()


def test_wrong_cron_says_what_is_wanted():
    from flows.serve import cron_schedule

    with pytest.raises(ConfigError, match=r"'every night' is no cron expression.*five fields"):
        cron_schedule("every night")


def test_scheduled_run_fires_alone_and_sigterm_stops_it_cleanly(running_servers: Servers, servers_home, tmp_path):
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "tests.flows.served_flow", str(servers_home), str(notes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ) as serving:
        assert serving.stdout.readline() == "ready\n"
        wait_for(notes.exists)
        wait_for(lambda: sum(run.state.name == "Cancelled" for run in runs_of("ticks")) >= 2)
        running = [run for run in runs_of("ticks") if run.state.name == "Running"]
        assert [run.auto_scheduled for run in running] == [True]
        child = psutil.Process(running[0].labels["redraft.pid"])
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0
    facts = f"{running_servers.prefect_api_url} {running_servers.mlflow_uri} {servers_home / 'prefect'}"
    assert notes.read_text() == f"start {facts}\n", "one run, which did not reach its end"
    assert not child.is_running()
    left = deployment("ticks")
    assert left.paused
    assert left.global_concurrency_limit.active_slots == 0
    assert {run.state.name for run in runs_of("ticks")} == {"Cancelled"}, "none runs, none waits"


KILLED = """
import os
from prefect import flow
from flows.lost_runs import note_process
@flow(name="below")
def below():
    os.kill(os.getpid(), 9)
@flow(name="killed")
def killed():
    note_process()
    below()
killed()
"""


def test_run_of_a_killed_process_becomes_crashed_and_a_living_one_stays(running_servers: Servers):
    from prefect import flow, get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    from flows.lost_runs import mark_lost_runs, note_process

    assert subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=os.environ).returncode == -signal.SIGKILL

    def states() -> dict[str, str]:
        with get_client(sync_client=True) as client:
            names = ["killed", "below"]
            found = {name: FlowFilter(name=FlowFilterName(any_=[name])) for name in names}
            return {name: client.read_flow_runs(flow_filter=found[name])[0].state.name for name in names}

    @flow
    def living():
        note_process()
        return mark_lost_runs()

    assert states() == {"killed": "Running", "below": "Running"}
    assert len(living()) == 1
    assert states() == {"killed": "Crashed", "below": "Crashed"}
    assert mark_lost_runs() == []

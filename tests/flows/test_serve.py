import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import orjson
import psutil
import pytest
import tzlocal
from mlflow import MlflowClient

from core.config import PlaceSettings, RunConfig
from core.errors import ConfigError, InputError
from flows.inspecting import show_status
from flows.remembered import Beginning, remember
from flows.running import rerun_loop
from flows.servers import Servers
from flows.session import workplace
from tests.clock import eventually
from tests.flows.served_flow import tick

ROOT = Path(__file__).parents[2]
wait_for = partial(eventually, seconds=150.0, every=0.2)


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
import os, sys
from prefect import flow
from flows.lost_runs import note_process
from tasks.rounds import close_round, open_pipeline, open_round
from tasks.workplace import Workplace
@flow(name="below")
def below():
    os.kill(os.getpid(), 9)
@flow(name="killed", flow_run_name="{run}")
def killed(place: dict, run: str):
    note_process()
    here = Workplace.model_validate(place)
    parent = open_pipeline(here, run, {"redraft.run": run}, {})
    close_round(here, open_round(here, "foundation", parent))
    open_round(here, "round 1", parent)
    below()
killed(eval(sys.argv[1]), "killed-run")
"""


@pytest.fixture
def config(running_servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A configuration that joins the running servers; REDRAFT_HOME is empty."""
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path))
    place = PlaceSettings(prefect_url=running_servers.prefect_api_url, mlflow_url=running_servers.mlflow_uri)
    known = RunConfig(place=place)
    return known.model_copy(update={"expert": known.expert.model_copy(update={"base_url": "unused"})})


def place_of(config: RunConfig) -> dict:
    return workplace(config.place, mlflow_uri=config.place.mlflow_url).model_dump(mode="json")


def tracked(uri: str, run: str) -> dict[str, str]:
    """Name -> status of a pipeline's MLflow run and of those below it."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("redraft").experiment_id
    parent = client.search_runs([experiment], f"tags.`redraft.run` = '{run}'")[0]
    rounds = client.search_runs([experiment], f"tags.`redraft.pipeline` = '{parent.info.run_id}'")
    return {one.info.run_name: one.info.status for one in [parent, *rounds]}


def test_run_of_a_killed_process_becomes_crashed_and_a_living_one_stays(config: RunConfig):
    from prefect import flow, get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    from flows.lost_runs import mark_lost_runs, note_process

    command = [sys.executable, "-c", KILLED, repr(place_of(config))]
    assert subprocess.run(command, cwd=ROOT, env=os.environ).returncode == -signal.SIGKILL

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
    uri = config.place.mlflow_url
    assert tracked(uri, "killed-run") == {"killed-run": "RUNNING", "foundation": "FINISHED", "round 1": "RUNNING"}
    assert living() == ["killed-run"]
    assert states() == {"killed": "Crashed", "below": "Crashed"}
    assert tracked(uri, "killed-run") == {"killed-run": "FAILED", "foundation": "FINISHED", "round 1": "FAILED"}
    assert mark_lost_runs() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_mlflow_shows_a_run_that_failed_or_was_interrupted_as_failed(config: RunConfig, error: type[BaseException]):
    from prefect import flow

    from flows.lost_runs import end_as_failed
    from tasks.rounds import open_pipeline, open_round
    from tasks.workplace import Workplace

    name = f"ends-with-{error.__name__}"

    @flow(flow_run_name="{run}", on_failure=[end_as_failed], on_crashed=[end_as_failed])
    def failing(place: dict, run: str) -> None:
        here = Workplace.model_validate(place)
        open_round(here, "round 1", open_pipeline(here, run, {"redraft.run": run}, {}))
        raise error

    with pytest.raises(error):
        failing(place_of(config), name)
    assert tracked(config.place.mlflow_url, name) == {name: "FAILED", "round 1": "FAILED"}


def test_the_pipelines_flows_end_their_mlflow_runs_however_they_end(running_servers: Servers):
    from flows.lost_runs import end_as_failed
    from flows.pipeline import redraft_run, redraft_scheduled

    for one in (redraft_run, redraft_scheduled):
        hooks = [*one.on_failure_hooks, *one.on_crashed_hooks, *one.on_cancellation_hooks]
        assert hooks == [end_as_failed] * 3


def test_rerun_refuses_a_run_that_is_going_on_and_says_how_to_stop_it(config: RunConfig, tmp_path: Path):
    from prefect import flow, get_client

    from flows.lost_runs import note_process

    @flow(flow_run_name="{run}")
    def going(run: str) -> str:
        note_process()
        with pytest.raises(InputError) as refused:
            rerun_loop(run, {}, json=True)
        return str(refused.value)

    remember(tmp_path, "going-on", Beginning(kind="run", config=config))
    state = going("going-on", return_state=True)
    assert f"in process {os.getpid()} on " in state.result()
    assert f"`kill {os.getpid()}`" in state.result()
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(state.state_details.flow_run_id)
    assert [one.name for one in states] == ["Pending", "Running", "Completed"], "it was left alone"


def test_status_shows_the_runs_that_have_begun_under_their_whole_names(config: RunConfig, capsys):
    from datetime import UTC, datetime, timedelta

    from prefect import flow, get_client
    from prefect.states import Cancelled, Scheduled

    @flow(flow_run_name="a-subflow-of-status")
    def under() -> None:
        pass

    @flow(flow_run_name="{run}")
    def shown(run: str) -> None:
        under()

    name = "a-run-whose-name-needs-most-of-a-line-of-eighty-characters"
    shown(name)
    with get_client(sync_client=True) as client:
        later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
        client.create_flow_run(shown, parameters={"run": ""}, name="not-begun", state=later)
        refused = client.create_flow_run(shown, parameters={"run": ""}, name="refused-at-once")
        client.set_flow_run_state(refused.id, Cancelled())
    assert show_status(config, json=True) == 0
    names = [run["run"] for run in orjson.loads(capsys.readouterr().out)["runs"]]
    assert names[0] == name, "the newest first"
    assert not {"a-subflow-of-status", "not-begun", "refused-at-once"} & set(names)
    assert show_status(config, json=False) == 0
    assert name in capsys.readouterr().out, "it is neither cut nor broken"


def test_a_schedule_without_rounds_is_refused(config: RunConfig):
    from flows.running import serve_schedule

    idle = config.model_copy(update={"rounds": config.rounds.model_copy(update={"n": 0})})
    with pytest.raises(ConfigError, match=r"rounds\.n"):
        serve_schedule(idle, "0 2 * * *")

"""Runs that did not reach their end: failed, cancelled, or killed.

A flow notes its process on its own run; a run whose process is gone is lost. Prefect would show it as running for ever,
so the next start marks it as crashed. MLflow knows nothing of Prefect's states: `end_as_failed` tells it.
"""

import os
import socket
from typing import Any
from uuid import UUID

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import flow_run as current
from prefect.states import Crashed

from core.errors import InputError
from flows.processes import Process, alive, this_process
from tasks.rounds import fail_pipeline
from tasks.workplace import Workplace

_HOST, _PID, _CREATED = "redraft.host", "redraft.pid", "redraft.created"
_GOING = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_UNFINISHED = FlowRunFilterState(type=FlowRunFilterStateType(any_=_GOING))


def note_process(run_id: UUID | None = None) -> None:
    """Note this process on a flow run, by default the current one: the first line of a flow."""
    if run_id is None and (known := current.get_id()) is not None:
        run_id = UUID(known)
    if run_id is None:  # the flow's function was called as a plain function
        return
    me = this_process()
    labels: dict[str, bool | int | float | str] = {_HOST: socket.gethostname(), _PID: me.pid, _CREATED: me.created}
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run_id, labels)


def mark_lost_runs() -> list[str]:
    """Set unfinished runs of this machine whose process is gone to crashed, subflows included; their names."""
    with get_client(sync_client=True) as client:
        lost = [run for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=_UNFINISHED)) if _lost(run)]
        for run in lost:
            _crash(client, run)
            _fail_in_mlflow(run)
    return [run.name for run in lost]


def refuse_if_going(run: FlowRun) -> None:
    """Raises InputError if a process is at work on the run (see `mark_lost_runs`): a second one would disturb it."""
    if run.state_type not in _GOING or _HOST not in run.labels:  # unnoted, it was killed before its first line
        return
    host, pid = run.labels[_HOST], run.labels[_PID]
    raise InputError(
        f"{run.name} is still going on, in process {pid} on {host}: wait for its end, or stop it (`kill {pid}` there) "
        "and rerun it then"
    )


def end_as_failed(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Hook of a flow: what MLflow shows as running of a flow run that failed, crashed or was cancelled has failed."""
    with get_client(sync_client=True) as client:  # a runner that calls the hook knows the run by an earlier name
        _fail_in_mlflow(client.read_flow_run(flow_run.id))


def _fail_in_mlflow(run: FlowRun) -> None:
    if "place" not in run.parameters:
        return
    place = Workplace.model_validate(run.parameters["place"])
    serving = os.environ.get("MLFLOW_TRACKING_URI", place.mlflow_uri)  # it may have moved since the run began
    fail_pipeline(place.model_copy(update={"mlflow_uri": serving}), run.name)


def _lost(run: FlowRun) -> bool:
    if run.labels.get(_HOST) != socket.gethostname():
        return False
    return not alive(Process(int(run.labels[_PID]), float(run.labels[_CREATED])))


def _crash(client: SyncPrefectClient, run: FlowRun) -> None:
    below = FlowRunFilter(state=_UNFINISHED, parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    for subflow in client.read_flow_runs(flow_run_filter=below):
        _crash(client, subflow)
    client.set_flow_run_state(
        run.id, Crashed(message="The process was killed; resume with `redraft rerun`."), force=True
    )

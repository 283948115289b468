"""Runs whose process was killed: Prefect shows them as running for ever, so the next start marks them as crashed.

A flow notes its process on its own run; a run whose process is gone is lost.
"""

import socket
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run as current
from prefect.states import Crashed

from flows.processes import Process, alive, this_process

_HOST, _PID, _CREATED = "redraft.host", "redraft.pid", "redraft.created"
_UNFINISHED = FlowRunFilterState(
    type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
)


def note_process() -> None:
    """Note this process on the current flow run: the first line of a flow."""
    run_id = current.get_id()
    if run_id is None:  # the flow's function was called as a plain function
        return
    me = this_process()
    labels: dict[str, bool | int | float | str] = {_HOST: socket.gethostname(), _PID: me.pid, _CREATED: me.created}
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(run_id), labels)


def mark_lost_runs() -> list[str]:
    """Set unfinished runs of this machine whose process is gone to crashed, subflows included; their ids."""
    with get_client(sync_client=True) as client:
        lost = [run for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=_UNFINISHED)) if _lost(run)]
        for run in lost:
            _crash(client, run)
    return [str(run.id) for run in lost]


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

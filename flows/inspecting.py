"""The verbs that only look: status, report, lineage."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.tree import Tree

from core.config import RunConfig
from core.errors import InputError
from core.manifest import MANIFEST, Manifest, Ref, read_manifest
from core.store import Store
from flows.lineage import ancestors
from flows.report import results_table
from flows.running import emit
from flows.session import home, session, workplace
from flows.summary import read_summary

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_SHOWN = 200
"""Runs that `status` lists."""


def show_status(config: RunConfig, *, json: bool) -> int:
    """The verb `status`: runs of this home, newest first, with their state in Prefect."""
    from flows.lost_runs import mark_lost_runs

    with session(config, expert=False):
        mark_lost_runs()
        rows = _begun_runs()
    if json:
        emit({"verb": "status", "runs": [{"run": run.name, "state": run.state_name} for run in rows]})
        return 0
    table = Table(Column("run", no_wrap=True, overflow="fold"), "state", "began", "seconds", "report")
    for run in rows:
        report = _report_of(run.name)
        began = f"{run.start_time:%Y-%m-%d %H:%M}" if run.start_time else "-"
        seconds = f"{run.total_run_time.total_seconds():.0f}"
        table.add_row(run.name, run.state_name or "?", began, seconds, "yes" if report.exists() else "-")
    Console().print(table)
    Console().print(f"reports: {_report_of('RUN')}", highlight=False, soft_wrap=True)
    return 0


def _begun_runs() -> "list[FlowRun]":
    """The newest runs: no subflows, no firings that are still to come or were cancelled before they began."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentTaskRunId, FlowRunFilterStartTime
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter(
        start_time=FlowRunFilterStartTime(is_null_=False),
        parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
    )
    begun: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        for offset in count(0, _SHOWN):
            page = client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=_SHOWN, offset=offset
            )
            begun += [run for run in page if run.run_count]  # a cancelled firing has a start, but no run
            if len(page) < _SHOWN or len(begun) >= _SHOWN:
                break
    return begun[:_SHOWN]


def _report_of(run: str) -> Path:
    return home() / "reports" / run / "report.html"


def show_report(run: str) -> int:
    """The verb `report`."""
    folder = home() / "reports" / run
    console = Console()
    console.print(results_table(read_summary(folder / "summary.json")))
    console.print(f"{folder / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


def show_lineage(config: RunConfig, name: str, *, json: bool) -> int:
    """The verb `lineage`."""
    store = workplace(config.place).store
    ref = find_ref(store, name)
    manifests = ancestors(store, [ref])
    if json:
        stages = [
            {"uri": one.uri, "digest": one.digest, "parents": _parents(manifest)} for one, manifest in manifests.items()
        ]
        emit({"verb": "lineage", "ref": ref.uri, "stages": stages})
        return 0
    tree = Tree(_line(ref, manifests[ref]))
    _grow(tree, ref, manifests, shown=set())
    Console().print(tree)
    return 0


def find_ref(store: Store, name: str) -> Ref:
    """The ref of a folder, or of the one output whose digest begins with `name`. Raises InputError."""
    if store.exists(f"{name.rstrip('/')}/{MANIFEST}"):
        folders = [name.rstrip("/")]
    else:
        paths = [path for kind in ("datasets", "checkpoints") for path in store.list(kind) if path.endswith(MANIFEST)]
        folders = [str(Path(path).parent) for path in paths]
        folders = [folder for folder in folders if read_manifest(store, folder).digest.startswith(name)]
    if len(folders) != 1:
        raise InputError(f"{len(folders)} outputs in {store.uri} are called {name!r}: give a folder or a longer digest")
    manifest = read_manifest(store, folders[0])
    return Ref(uri=folders[0], digest=manifest.digest, kind=manifest.kind)


def _parents(manifest: Manifest) -> list[str]:
    return [parent.digest for parents in manifest.parents.values() for parent in parents]


def _grow(tree: Tree, ref: Ref, manifests: dict[Ref, Manifest], shown: set[Ref]) -> None:
    for role, parents in manifests[ref].parents.items():
        for parent in parents:
            branch = tree.add(f"[dim]{role}:[/] {_line(parent, manifests[parent])}")
            if parent in shown and manifests[parent].parents:
                branch.add("[dim]as above[/]")
                continue
            shown.add(parent)
            _grow(branch, parent, manifests, shown)


def _line(ref: Ref, manifest: Manifest) -> str:
    counts = manifest.counts
    dropped = sum(counts.rejected.values()) + sum(counts.failed.values())
    lost = f", {dropped} dropped" if dropped else ""
    return f"[bold]{ref.uri}[/] [dim]{ref.digest[:12]}[/] {counts.ok} ok{lost}"

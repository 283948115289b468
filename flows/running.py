"""The verbs that run the loop: run, rerun, serve, ui."""

import os
import shlex
import sys
import time
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from core.config import RunConfig
from core.errors import ConfigError, InputError, Interrupted
from flows.finished import finished_as, finished_run
from flows.remembered import Beginning, recall, remember, with_limits
from flows.report import results_table
from flows.session import home, session, workplace
from flows.summary import RunSummary, read_summary

DONE, FAILED, PARTIAL = 0, 1, 3
_console = Console(stderr=True)


def run_loop(config: RunConfig, *, json: bool) -> int:
    """The verb `run`."""
    started = time.monotonic()
    if (before := finished_run(config, workplace(config.place).store, home() / "reports")) is not None:
        return repeat("run", before, started, json=json)
    check_before(config)
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    command = shlex.join(["redraft", *sys.argv[1:]])
    remember(home(), name, Beginning(kind="run", config=config))
    with session(config) as place:  # it sets the environment that the imports read
        from flows.lost_runs import mark_lost_runs
        from flows.pipeline import redraft_run
        from flows.preflight import preflight
        from tasks.narration import narrated

        preflight(config, place)
        say(f"run {name}")
        say(f"Prefect {os.environ['PREFECT_API_URL'].removesuffix('/api')} · MLflow {place.mlflow_uri}")
        values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json"), "run": name}
        mark_lost_runs()
        with narrated():
            state = redraft_run(**values, command=command, return_state=True)
        return conclude("run", name, state, started, json=json)


def rerun_loop(run: str, limits: dict[str, float], *, json: bool) -> int:
    """The verb `rerun`: the same flow run again. Whatever has a manifest is returned at once, but for failed rows.

    limits: keys of the expert's settings that have new values from now on.
    """
    started = time.monotonic()
    known = with_limits(home(), run, limits) if limits else recall(home(), run)
    before = finished_as(run, known.config, workplace(known.config.place).store, home() / "reports")
    if before is not None and not any(stage.failed for stage in before.stages):
        return repeat("rerun", before, started, json=json)
    with session(known.config) as place:  # it sets the environment that the imports read
        from prefect import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
        from prefect.flow_engine import run_flow
        from prefect.states import Pending

        from flows.lost_runs import mark_lost_runs, note_process, refuse_if_going
        from flows.pipeline import redraft_run, redraft_scheduled
        from tasks.narration import narrated

        mark_lost_runs()
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[run])))
            if not found:
                raise InputError(f"Prefect knows no run {run!r}: `redraft status` lists them")
            refuse_if_going(found[0])
            note_process(found[0].id)
            # not Scheduled: `redraft serve` would take the run for one that is due, and begin it too
            client.set_flow_run_state(found[0].id, Pending(message="redraft rerun"), force=True)
            again = client.read_flow_run(found[0].id)
        trying_again = place.model_copy(update={"retry_failed": True})
        config, where = known.config.model_dump(mode="json"), trying_again.model_dump(mode="json")
        parameters: dict[str, Any] = again.parameters | {"config": config, "place": where}
        with narrated():
            flow: Any = redraft_run if known.kind == "run" else redraft_scheduled
            state = run_flow(flow, flow_run=again, parameters=parameters, return_type="state")
        if state.name == "NothingNew":
            return _nothing_new(run, state.message, started, json=json)
        return conclude("rerun", run, state, started, json=json)


def _nothing_new(run: str, reason: str, started: float, *, json: bool) -> int:
    say(f"{run}: {reason}")
    if json:
        seconds = round(time.monotonic() - started, 1)
        emit({"verb": "rerun", "run": run, "outputs": [], "note": reason, "seconds": seconds})
    return DONE


def serve_schedule(config: RunConfig, cron: str) -> int:
    """The verb `serve`."""
    if config.rounds.n == 0:
        raise ConfigError("a scheduled run learns in rounds: set rounds.n to 1 or more")
    check_before(config)
    with session(config) as place:  # it sets the environment that the imports read
        from flows.pipeline import redraft_scheduled
        from flows.serve import cron_schedule, serve_loop

        schedule = cron_schedule(cron)
        values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json"), "name": config.name}
        say(f"serving {config.name} at {cron!r}; Ctrl-C ends it. Prefect {os.environ['PREFECT_API_URL']}")
        serve_loop(redraft_scheduled, name=config.name, schedule=schedule, parameters=values)
    return DONE


def check_before(config: RunConfig) -> None:
    """What can be known before any server is started."""
    if config.base.steps == 0 and not config.model.checkpoint:
        raise ConfigError(
            "base.steps = 0 goes on from a model that was trained before: name its folder with model.checkpoint"
        )
    config.check_trainings()
    if config.model.checkpoint:
        from flows.preflight import check_devices, check_model

        check_model(config)
        check_devices(config)


def show_servers(config: RunConfig) -> int:
    """The verb `ui`."""
    from flows.servers import servers, wait_for_interrupt

    place = config.place
    with servers(home(), prefect_url=place.prefect_url or None, mlflow_url=place.mlflow_url or None) as running:
        say(f"Prefect  {running.prefect_ui}")
        say(f"MLflow   {running.mlflow_uri}  (choose “Model training” in its sidebar)")
        say("Ctrl-C stops what was started here.")
        wait_for_interrupt()
    return DONE


def conclude(verb: str, run: str, state: Any, started: float, *, json: bool) -> int:
    """Say how a run ended, on the terminal and, if asked, as one line of JSON; the exit code."""
    seconds = time.monotonic() - started
    if not state.is_completed():
        partial = is_partial(state)
        say(f"{run} {'is incomplete' if partial else 'failed'}: {reason_of(state)}", style="red")
        say(f"What is finished is kept. Mend the cause, then: redraft rerun {run}")
        if json:
            emit({"verb": verb, "run": run, "outputs": [], "error": reason_of(state), "seconds": round(seconds, 1)})
        return PARTIAL if partial else FAILED
    return present(verb, read_summary(Path(state.result())), seconds, json=json)


def is_partial(state: Any) -> bool:
    """Did a flow stop with work that is kept and can be gone on with, as opposed to failing?"""
    return isinstance(state.result(raise_on_failure=False), Interrupted)


def repeat(verb: str, summary: RunSummary, started: float, *, json: bool) -> int:
    """Show a run that finished before: its outputs were checked, and there is nothing to do."""
    code = present(verb, summary, time.monotonic() - started, json=json)
    say(f"{summary.run} finished before, and each of its {len(summary.stages)} outputs verifies: nothing to do.")
    return code


def present(verb: str, summary: RunSummary, seconds: float, *, json: bool) -> int:
    """A finished run's table, notes and report, and, if asked, the line of JSON."""
    Console().print(results_table(summary))
    for note in summary.notes:
        say(note)
    say(f"report: {home() / 'reports' / summary.run / 'report.html'}")
    if json:
        emit(machine_line(verb, summary, seconds))
    return DONE


def reason_of(state: Any) -> str:
    """Why a flow failed, as the error itself says it."""
    try:
        state.result()
    except Exception as error:
        return str(error)
    return state.message or state.name


def machine_line(verb: str, summary: RunSummary, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    counted = [stage for stage in summary.stages if stage.rows_in is not None]
    rejected, failed = {}, {}
    for stage in counted:
        for total, part in ((rejected, stage.rejected), (failed, stage.failed)):
            for reason, count in part.items():
                total[reason] = total.get(reason, 0) + count
    costs = [one.cost_usd for one in summary.experts]
    return {
        "verb": verb,
        "run": summary.run,
        "outputs": [stage.digest for stage in summary.stages],
        "counts": {"ok": sum(stage.ok or 0 for stage in counted), "rejected": rejected, "failed": failed},
        "seconds": round(seconds, 1),
        "cost_usd": None if None in costs else sum(cost for cost in costs if cost is not None),
    }


def emit(value: dict[str, Any]) -> None:
    """One line of JSON on standard output, in ASCII: an error may quote text that no encoding can write."""
    sys.stdout.write(dumps(value) + "\n")


def say(text: str, *, style: str = "") -> None:
    """A line for people, on standard error, as it is: paths and errors hold what rich would take for markup."""
    _console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)

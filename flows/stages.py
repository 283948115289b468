"""The verbs that run one stage of the line on its own: ingest, pair. As tasks of a flow, recorded as in a whole run."""

import shlex
import sys
import time
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from core.config import RunConfig
from core.errors import ConfigError
from core.manifest import Manifest, Ref, read_manifest
from flows.inspecting import find_ref
from flows.running import DONE, FAILED, emit, reason_of, say
from flows.session import session, workplace

Verb = Literal["ingest", "pair"]


def run_ingest(config: RunConfig, *, json: bool) -> int:
    """The verb `ingest`."""
    if config.data.source == "scenes" or not config.data.path:
        raise ConfigError("name the file to ingest: redraft ingest FILE --images FOLDER")
    return _run("ingest", config, None, json=json)


def run_pair(config: RunConfig, samples: str, *, json: bool) -> int:
    """The verb `pair`."""
    return _run("pair", config, find_ref(workplace(config.place).store, samples), json=json)


def _run(verb: Verb, config: RunConfig, source: Ref | None, *, json: bool) -> int:
    started, name = time.monotonic(), f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with session(config, expert=verb == "pair" and config.pair.by == "expert") as place:
        from flows.lost_runs import mark_lost_runs
        from flows.one_stage import one_stage
        from tasks.narration import narrated

        mark_lost_runs()
        values: dict[str, Any] = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json")}
        command = shlex.join(["redraft", *sys.argv[1:]])
        with narrated():
            state = one_stage(**values, run=name, verb=verb, source=source, command=command, return_state=True)
        seconds = time.monotonic() - started
        if not state.is_completed():
            say(f"{name} failed: {reason_of(state)}", style="red")
            say("What is finished is kept. Mend the cause, then give the command again.")
            if json:
                emit(
                    {"verb": verb, "run": name, "outputs": [], "error": reason_of(state), "seconds": round(seconds, 1)}
                )
            return FAILED
        ref: Ref = state.result()
        return show_output(verb, name, ref, read_manifest(place.store, ref.uri), seconds, json=json)


def show_output(verb: str, run: str, ref: Ref, manifest: Manifest, seconds: float, *, json: bool) -> int:
    """The account of a dataset, for people and, if asked, as one line of JSON."""
    counts = manifest.counts
    table = Table("rows", "outcome", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    table.add_row(f"{counts.rows_in:,}", "in")
    table.add_row(f"{counts.ok:,}", "ok")
    for outcome, reasons in (("rejected", counts.rejected), ("failed", counts.failed)):
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
            table.add_row(f"{number:,}", f"{outcome}: {reason}")
    console = Console()
    console.print(table)
    held = ", ".join(f"{rows:,} {name}" for name, rows in _tables(manifest).items())
    console.print(f"{ref.uri}  ({ref.digest[:12]}): {held}", highlight=False, soft_wrap=True)
    if json:
        account = counts.model_dump(include={"ok", "rejected", "failed"})
        outputs = [ref.model_dump()]
        emit(
            {
                "verb": verb,
                "run": run,
                "outputs": outputs,
                "counts": account,
                "seconds": round(seconds, 1),
                "cost_usd": None,
            }
        )
    return DONE


def _tables(manifest: Manifest) -> dict[str, int]:
    rows: dict[str, int] = {}
    for part in manifest.parts:
        if part.table:
            rows[part.table] = rows.get(part.table, 0) + (part.rows or 0)
    return rows

"""The verb `experiment`: measure what is missing, seed by seed, then write tables and figures of all seeds."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from core.config import RunConfig
from core.errors import ConfigError
from flows.environment import applied, environment
from flows.experiments.catalogue import CATALOGUE, declaration_of
from flows.experiments.tables import write_tables
from flows.report import flatten
from flows.running import DONE, FAILED, reason_of, say
from flows.session import home, session
from flows.summary import config_hash, machine, versions


def run_experiments(
    config: RunConfig, names: Sequence[str], seeds: Sequence[int], out: Path, readme: Path | None = None
) -> int:
    """Write out/<ID>/seed<k>.json where it is missing or of another configuration; then the tables."""
    unknown = sorted(set(names) - set(CATALOGUE))
    if unknown:
        raise ConfigError(f"no experiment {', '.join(unknown)}: there are {', '.join(CATALOGUE)}")
    if config.data.source != "scenes":
        raise ConfigError("experiments need the scene world, whose facts are known: set data.source = 'scenes'")
    with applied(environment(home())):  # before the libraries that read it are imported
        from core.protocol import protocol_digest

        protocols = {name: protocol_digest(declaration_of(name)) for name in names}
    for seed in seeds:
        seeded = config.model_copy(update={"seed": seed})
        missing = [name for name in names if not _there(out, name, seeded, protocols[name])]
        if missing and not _measure(seeded, {name: protocols[name] for name in missing}, out):
            return FAILED
    for path in write_tables(out, readme):
        say(f"wrote {path}")
    return DONE


def _measure(config: RunConfig, protocols: dict[str, str], out: Path) -> bool:
    names = list(protocols)
    run = f"experiment-seed{config.seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with session(config) as place:  # it sets the environment that the imports read
        from flows.experiments.seed import Stopwatch, measure_seed
        from flows.lost_runs import mark_lost_runs
        from tasks.narration import narrated

        say(f"seed {config.seed}: {', '.join(names)}  ·  Prefect {os.environ['PREFECT_API_URL'].removesuffix('/api')}")
        mark_lost_runs()
        watch = Stopwatch()
        values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json")}
        with narrated():
            state = measure_seed(**values, run=run, experiments=names, return_state=True)
        if not state.is_completed():
            say(f"{run} failed: {reason_of(state)}. What is finished is kept: give the command again.", style="red")
            return False
        about = {"command": shlex.join(["redraft", *sys.argv[1:]]), "time": watch.read()}
        about["time"]["stage_seconds"], found = state.result()
        for name, rows in found.items():
            say(f"wrote {_write(out, name, config, rows, about | {'protocol': protocols[name]})}")
    return True


def _write(out: Path, name: str, config: RunConfig, rows: list[dict[str, Any]], about: dict[str, Any]) -> Path:
    path = _path(out, name, config.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "experiment": name,
        "seed": config.seed,
        **about,
        "config_hash": config_hash(config),
        "config": decisive(config, name),
        "versions": versions(),
        "machine": machine().model_dump(mode="json", exclude={"host"}),
        "rows": rows,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(_compact(result))
    partial.replace(path)
    return path


def _compact(result: dict[str, Any]) -> str:
    """JSON with one line a row: a diff shows which rows changed."""
    rows = ",\n  ".join(json.dumps(row) for row in result["rows"])
    head = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key != "rows")
    return f'{{\n {head},\n "rows": [\n  {rows}\n ]\n}}\n'


def _there(out: Path, name: str, config: RunConfig, protocol: str) -> bool:
    """Is there a result of this protocol and configuration? A key that is newer than the result counts as its default.

    Without that, every new key of the software would make hours of measurements stale.
    """
    try:
        known = json.loads(_path(out, name, config.seed).read_text())
    except (OSError, ValueError):
        return False
    now, default = decisive(config, name), decisive(RunConfig(), name)
    before = {key: known["config"].get(key, default[key]) for key in now}
    return bool(before == now and known["protocol"] == protocol)


def decisive(config: RunConfig, name: str) -> dict[str, JsonValue]:
    """The settings that an experiment's rows depend on, by dotted key."""
    keys = dict(flatten(config.model_dump(mode="json", exclude={"place", "compute", "ingest"})))
    return {key: value for key, value in keys.items() if key not in CATALOGUE[name].sets}


def _path(out: Path, name: str, seed: int) -> Path:
    return out / name / f"seed{seed}.json"

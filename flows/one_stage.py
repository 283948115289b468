"""The flow `redraft-stage`: one stage of the line on its own."""

from typing import Any

from prefect import flow

from core.config import parse_config
from core.errors import ConfigError
from core.manifest import Ref
from flows.foundation import ingest_file, pair_samples
from flows.lost_runs import end_as_failed, note_process
from tasks.rounds import close_round, open_pipeline
from tasks.workplace import Workplace


@flow(
    name="redraft-stage",
    flow_run_name="{run}",
    on_failure=[end_as_failed],
    on_crashed=[end_as_failed],
    on_cancellation=[end_as_failed],
)
def one_stage(
    config: dict[str, Any], place: dict[str, Any], run: str, verb: str, source: Ref | None, command: str
) -> Ref:
    """Run the stage `verb` on the dataset `source`, below a run of its own in MLflow."""
    note_process()
    settings, here = parse_config(config, f"run {run}"), Workplace.model_validate(place).for_run(run)
    tags = {"redraft.run": run, "redraft.config": settings.name, "redraft.command": command}
    parent = open_pipeline(here, run, tags, config)
    if verb == "ingest":
        found = ingest_file(settings, here, parent)
    elif verb == "pair" and source is not None:
        found = pair_samples(settings, here, source, parent)
    else:
        raise ConfigError(f"no stage {verb!r}, or none without a dataset")
    close_round(here, parent)
    return found

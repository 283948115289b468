"""The flow `redraft-stage`: one stage of the line on its own."""

from typing import Any

from prefect import flow

from core.config import RunConfig, parse_config
from core.manifest import Ref
from flows.drafting import drafted
from flows.foundation import ingest_file, pair_samples
from flows.lost_runs import end_as_failed, note_process
from flows.revision import drafts_of, revised
from flows.stages import Verb
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
    config: dict[str, Any],
    place: dict[str, Any],
    run: str,
    verb: Verb,
    sources: list[Ref],
    command: str,
    tokenizer: str = "",
    limit: int | None = None,
) -> list[Ref]:
    """Run the stage `verb` on the datasets `sources`, below a run of its own in MLflow; its outputs.

    limit: drafts are made for so many samples at most; None: for all.
    """
    note_process()
    settings, here = parse_config(config, f"run {run}"), Workplace.model_validate(place).for_run(run)
    tags = {"redraft.run": run, "redraft.config": settings.name, "redraft.command": command}
    parent = open_pipeline(here, run, tags, config)
    found = _outputs(settings, here, verb, sources, tokenizer, limit, parent)
    close_round(here, parent)
    return found


def _outputs(
    settings: RunConfig,
    here: Workplace,
    verb: Verb,
    sources: list[Ref],
    tokenizer: str,
    limit: int | None,
    parent: str,
) -> list[Ref]:
    match verb:
        case "ingest":
            return [ingest_file(settings, here, parent)]
        case "pair":
            return [pair_samples(settings, here, source, parent) for source in sources]
        case "draft":
            return drafted(settings, here, sources, limit, parent)
        case "adopt":
            return drafts_of(settings, here, sources, tokenizer, parent)
        case "revise":
            return revised(settings, here, drafts_of(settings, here, sources, tokenizer, parent), parent)

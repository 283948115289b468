"""Is there anything to do? A run that finished with this configuration, and whose outputs all verify, is not repeated.

What counts are the manifests: the summary only says where to look, so that no server has to be started.
"""

from pathlib import Path

from core.config import RunConfig
from core.errors import InputError
from core.fingerprint import inputs_digest
from core.stage import intact
from core.store import Store
from flows.summary import RunSummary, StageRecord, config_hash, read_summary
from tasks.versions import VERSIONS


def finished_run(config: RunConfig, store: Store, reports: Path) -> RunSummary | None:
    """The newest complete run of this configuration on unchanged input, if every output of it still verifies.

    A scheduled run of the configuration is no such run: it went on from a champion, on samples of its own.
    """
    known = (found for path in reports.glob("*/summary.json") if (found := _readable(path)) is not None)
    whole = sorted((one for one in known if one.kind == "run"), key=lambda one: one.started, reverse=True)
    return next((one for one in whole if _complete(one, config, store)), None)


def finished_as(run: str, config: RunConfig, store: Store, reports: Path) -> RunSummary | None:
    """What the run of this name, of whatever kind, left behind, if it is complete and still verifies."""
    summary = _readable(reports / run / "summary.json")
    return summary if summary is not None and _complete(summary, config, store) else None


def _complete(summary: RunSummary, config: RunConfig, store: Store) -> bool:
    wanted = (config_hash(config), inputs_digest(config), "done")
    if (summary.config_hash, summary.inputs_digest, summary.status) != wanted:
        return False
    return bool(summary.stages) and all(_stands(store, stage) for stage in summary.stages)


def _stands(store: Store, stage: StageRecord) -> bool:
    if VERSIONS.get(stage.stage) != stage.version:
        return False
    manifest = intact(store, stage.uri)
    return manifest is not None and manifest.digest == stage.digest


def _readable(path: Path) -> RunSummary | None:
    """A summary of this version of the software; others are passed over."""
    try:
        return read_summary(path)
    except InputError:
        return None

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
    """The newest complete run of this configuration on unchanged input, if every output of it still verifies."""
    wanted = (config_hash(config), inputs_digest(config))
    known = [found for path in reports.glob("*/summary.json") if (found := _readable(path)) is not None]
    for summary in sorted(known, key=lambda one: one.started, reverse=True):
        same = (summary.config_hash, summary.inputs_digest) == wanted and summary.status == "done"
        if same and summary.stages and all(_stands(store, stage) for stage in summary.stages):
            return summary
    return None


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

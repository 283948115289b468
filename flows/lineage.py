"""What came from what: manifests, read from a ref back to its first ancestors. No other record of a run is kept."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from core.manifest import Manifest, Ref, read_manifest
from core.store import Store
from flows.summary import StageRecord


def ancestors(store: Store, refs: Iterable[Ref]) -> dict[Ref, Manifest]:
    """The refs and all that they were made from, every parent before its children."""
    found: dict[Ref, Manifest] = {}

    def visit(ref: Ref) -> None:
        if ref in found:
            return
        manifest = read_manifest(store, ref.uri)
        for parents in manifest.parents.values():
            for parent in parents:
                visit(parent)
        found[ref] = manifest

    for ref in refs:
        visit(ref)
    return found


def stage_records(
    manifests: Mapping[Ref, Manifest], labels: Mapping[Ref, str], since: datetime | None = None
) -> list[StageRecord]:
    """One record a stage. Stages that were computed before `since` are marked as cached."""
    return [_record(ref, manifest, labels, since) for ref, manifest in manifests.items()]


def _record(ref: Ref, manifest: Manifest, labels: Mapping[Ref, str], since: datetime | None) -> StageRecord:
    counts = manifest.counts
    counted = ref.kind == "dataset"
    return StageRecord(
        stage=manifest.producer.stage,
        label=labels.get(ref, ""),
        version=manifest.producer.version,
        key=manifest.key,
        uri=ref.uri,
        digest=ref.digest,
        parents=[parent.digest for parents in manifest.parents.values() for parent in parents],
        kind=ref.kind,
        seconds=manifest.seconds,
        cached=since is not None and manifest.created < since,
        rows_in=counts.rows_in if counted else None,
        ok=counts.ok if counted else None,
        rejected=counts.rejected,
        failed=counts.failed,
    )

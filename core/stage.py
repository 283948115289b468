"""How a stage runs: once. Its key names its output; an output that exists and verifies is returned as it is.

stage = Stage(name="pair", version=1, config=settings, inputs={"samples": [samples]})
result = run_stage(store, claims, stage, compute)      # compute(output) writes tables and commits
"""

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from core.claims import Claims
from core.errors import AccountingError, ClaimLost, EmptyOutput, InputError, StoreError
from core.manifest import (
    MANIFEST,
    Counts,
    Kind,
    Manifest,
    Part,
    Producer,
    Ref,
    read_manifest,
    read_table,
    stage_key,
    to_parquet,
    write_manifest,
)
from core.settings import Settings
from core.store import Store, check
from data_contracts import Contract, Rejects, split_rows

OnProgress = Callable[[int, int | None, Mapping[str, float]], None]
_REJECTS_A_PART = 50_000
_FOLDERS: dict[Kind, str] = {"dataset": "datasets", "checkpoint": "checkpoints", "report": "reports"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of work. `version` is bumped by hand when the stage's output changes for equal config and inputs."""

    name: str
    version: int
    config: Settings
    inputs: Mapping[str, Sequence[Ref]] = field(default_factory=dict)
    kind: Kind = "dataset"

    @property
    def config_dict(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        return self.config.model_dump(mode="json")

    @property
    def key(self) -> str:
        """64 hex digits that name this work."""
        return stage_key(self.name, self.version, self.config_dict, self.inputs)

    @property
    def folder(self) -> str:
        """Where the output goes, e.g. 'datasets/pair-1f2e3d4c5b6a7980'."""
        return f"{_FOLDERS[self.kind]}/{self.name}-{self.key[:16]}"


@dataclass(frozen=True)
class StageResult:
    """What a stage gave: the ref, its manifest, and whether it was there already."""

    ref: Ref
    manifest: Manifest
    cached: bool


class Output:
    """The folder that a stage is writing. Rejects are counted here, and here alone the account must balance."""

    def __init__(self, store: Store, stage: Stage, work: Path) -> None:
        self.store, self.stage = store, stage
        self.work = work
        """A local folder that survives a crash, for resumable work (training checkpoints); removed at the end."""
        self.parts: list[Part] = []
        self.manifest: Manifest | None = None
        self.progress: OnProgress = lambda _done, _total, _metrics: None
        """Call it with the steps done, their total (if known) and metrics, to show long work to whoever watches."""
        self.note: Callable[[str], None] = lambda _words: None
        """Call it with a few words about how the work stands, for whoever watches."""
        self.owned: Callable[[], bool] = lambda: True
        """Is the claim on this work still ours? Asked before the manifest is written."""
        self._rejects: list[dict[str, str]] = []
        self._reject_parts = 0
        self._dropped: dict[str, Counter[str]] = {"rejected": Counter(), "failed": Counter()}
        self._ok = 0
        self._started = time.monotonic()

    def write(self, schema: type[Contract], frame: pl.DataFrame, *, part: str = "00000", counted: bool = True) -> None:
        """Write rows of a table as one part. Rows that break the contract become rejects.

        `counted` rows are the stage's product: each counts as one row that is ok.
        """
        good, failures = split_rows(schema, frame)
        for failure in failures:
            self.reject(failure.row_id, failure.reason)
        self._add(f"{schema.table}-{part}.parquet", to_parquet(schema, good), table=schema.table, rows=good.height)
        self._ok += good.height if counted else 0

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file that is not a table (weights, JSON)."""
        self._add(path, data)

    def write_folder(self, folder: Path) -> None:
        """Write every file of a local folder, which is empty then: weights are moved, not read into memory."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            path, size = file.relative_to(folder).as_posix(), file.stat().st_size
            with file.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            self.store.write_from(f"{self.stage.folder}/{path}", file)
            self.parts.append(Part(path=path, sha256=sha256, bytes=size))

    def reject(self, row_id: str, reason: str, detail: str = "", *, failed: bool = False) -> None:
        """Count a row as rejected (it is at fault) or failed (a re-run may succeed) and keep the reason."""
        outcome = "failed" if failed else "rejected"
        row = {"stage": self.stage.name, "row_id": row_id, "outcome": outcome, "reason": reason, "detail": detail[:500]}
        self._dropped[outcome][reason] += 1
        self._rejects.append(row)
        if len(self._rejects) == _REJECTS_A_PART:
            self._write_rejects()

    def reject_frame(self, rejects: pl.DataFrame) -> None:
        """Count rejects that a core function gathered (columns row_id, reason and, optionally, detail and outcome)."""
        for row in rejects.iter_rows(named=True):
            detail, failed = row.get("detail") or "", row.get("outcome") == "failed"
            self.reject(row["row_id"], row["reason"], detail, failed=failed)

    def commit(
        self, *, rows_in: int, ok: int | None = None, facts: Mapping[str, Any] | None = None, is_shard: bool = False
    ) -> Ref:
        """Write the rejects and the manifest.

        `is_shard`: the output is one of several, and may be without a good row if all were rejected, see
        `check_some_rows`; what failed may be well when it is computed again.

        Raises:
            AccountingError: rows_in != ok + rejected + failed.
            EmptyOutput: nothing is ok.
            ClaimLost: another process has taken this work over.
        """
        counts = self._counts(rows_in, self._ok if ok is None else ok)
        if not counts.balanced:
            raise AccountingError(f"stage {self.stage.name} lost rows: {counts.model_dump()}")
        if counts.ok == 0 and (counts.failed or not is_shard):
            detail = self._rejects[0]["detail"] if self._rejects else ""
            raise EmptyOutput(
                f"stage {self.stage.name} has no good row: rejected {counts.rejected}, failed {counts.failed}"
                + (f"; one of them: {detail}" if detail else "")
            )
        self._write_rejects()
        if not self.owned():
            raise ClaimLost(
                f"stage {self.stage.name} was taken over by another process: this one could not renew its claim in time"
            )
        stage = self.stage
        self.manifest = Manifest(
            kind=stage.kind,
            key=stage.key,
            producer=Producer(stage=stage.name, version=stage.version, config=stage.config_dict),
            parents={name: list(refs) for name, refs in stage.inputs.items()},
            parts=self.parts,
            counts=counts,
            facts=dict(facts or {}),
            created=datetime.now(UTC),
            seconds=time.monotonic() - self._started,
        )
        return write_manifest(self.store, stage.folder, self.manifest)

    def _counts(self, rows_in: int, ok: int) -> Counts:
        dropped = {outcome: dict(reasons) for outcome, reasons in self._dropped.items()}
        return Counts(rows_in=rows_in, ok=ok, **dropped)

    def _write_rejects(self) -> None:
        """Write the rejects gathered so far as a part: millions of them need no memory."""
        if not self._rejects:
            return
        frame = pl.DataFrame(self._rejects).cast({"outcome": Rejects.outcome.dtype})
        part = f"{Rejects.table}-{self._reject_parts:05d}.parquet"
        self._add(part, to_parquet(Rejects, frame), table=Rejects.table, rows=frame.height)
        self._rejects, self._reject_parts = [], self._reject_parts + 1

    def _add(self, path: str, data: bytes, *, table: str | None = None, rows: int | None = None) -> None:
        self.store.write(f"{self.stage.folder}/{path}", data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.parts.append(Part(path=path, sha256=sha256, bytes=len(data), table=table, rows=rows))


def find_output(store: Store, stage: Stage, *, retry_failed: bool = False) -> StageResult | None:
    """The stage's output, if it is complete and every part verifies. A damaged folder is moved aside.

    With `retry_failed` an output with failed rows counts as not there: computing it again may find them well.
    """
    if not store.exists(f"{stage.folder}/{MANIFEST}"):
        return None
    manifest = intact(store, stage.folder)
    if manifest is None:
        store.move(stage.folder, f"damaged/{stage.folder}-{int(time.time())}")
        return None
    if retry_failed and manifest.counts.failed:
        return None
    return StageResult(Ref(uri=stage.folder, digest=manifest.digest, kind=manifest.kind), manifest, True)


def check_some_rows(store: Store, shards: Sequence[Ref], what: str) -> None:
    """Raise EmptyOutput if there is no good row in any of the shards; says why one of the rows is none."""
    counts = [read_manifest(store, shard.uri).counts for shard in shards]
    if not any(one.ok for one in counts):
        rejected, failed = (sum((Counter(part) for part in parts), Counter[str]()) for parts in (
            [one.rejected for one in counts], [one.failed for one in counts]
        ))  # fmt: skip
        details = read_table(store, shards, Rejects)["detail"]
        raise EmptyOutput(
            f"none of the {what} has a good row: rejected {dict(rejected)}, failed {dict(failed)}"
            + (f"; one of them: {details[0]}" if len(details) and details[0] else "")
        )


def intact(store: Store, folder: str) -> Manifest | None:
    """The manifest of an output folder, if it is there and every part has its checksum."""
    try:
        manifest = read_manifest(store, folder)
        for part in manifest.parts:
            check(store, f"{folder}/{part.path}", part.sha256)
    except (StoreError, InputError):  # gone, damaged, or no manifest of this version
        return None
    return manifest


def run_stage(
    store: Store,
    claims: Claims,
    stage: Stage,
    compute: Callable[[Output], None],
    *,
    work_root: Path,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
    retry_failed: bool = False,
) -> StageResult:
    """Return the stage's output, computing it if it is not there. Two runs of the same work wait for each other."""
    found = find_output(store, stage, retry_failed=retry_failed)
    if found is not None:
        return found
    with claims.hold(f"stage:{stage.key}") as held:
        found = find_output(store, stage, retry_failed=retry_failed)
        if found is not None:
            return found
        work = work_root / f"{stage.name}-{stage.key[:16]}"
        work.mkdir(parents=True, exist_ok=True)
        store.delete(stage.folder)  # parts of a run that died before its manifest
        output = Output(store, stage, work)
        output.owned = held
        if on_progress is not None:
            output.progress = on_progress
        if on_note is not None:
            output.note = on_note
        compute(output)
        if output.manifest is None:
            raise AccountingError(f"stage {stage.name} ended without commit()")
        shutil.rmtree(work, ignore_errors=True)
        ref = Ref(uri=stage.folder, digest=output.manifest.digest, kind=stage.kind)
        return StageResult(ref, output.manifest, False)

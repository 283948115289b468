"""What makes a folder a dataset or a checkpoint: its manifest, written last. Its existence means complete."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import polars as pl
from pydantic import Field

from core.errors import InputError
from core.settings import Settings
from core.store import Store, read_verified
from data_contracts import Contract, contract_of

MANIFEST = "manifest.json"
Kind = Literal["dataset", "checkpoint", "report"]


class Ref(Settings):
    """All that passes between tasks: where an output lies in the store, what it is, and the digest of its content."""

    uri: str
    """Folder in the store, e.g. 'datasets/synth-1f2e3d4c5b6a7980'."""
    digest: str
    kind: Kind


class Part(Settings):
    """One file of a folder; `table` and `rows` are null for a file that is not a table."""

    path: str
    sha256: str
    bytes: int
    table: str | None = None
    rows: int | None = None


class Counts(Settings):
    """A stage's account: rows_in = ok + sum(rejected) + sum(failed)."""

    rows_in: int
    ok: int
    rejected: dict[str, int] = Field(default_factory=dict)
    failed: dict[str, int] = Field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Is every row accounted for?"""
        return self.rows_in == self.ok + sum(self.rejected.values()) + sum(self.failed.values())


class Producer(Settings):
    """What made a folder."""

    stage: str
    version: int
    config: dict[str, Any]


class Manifest(Settings):
    """The content of `manifest.json`."""

    kind: Kind
    key: str
    """The stage key: sha256 of stage, version, config and the digests of the inputs."""
    producer: Producer
    parents: dict[str, list[Ref]]
    parts: list[Part]
    counts: Counts
    facts: dict[str, Any] = Field(default_factory=dict)
    """What else is worth knowing at a glance: metrics, rows by split, costs."""
    created: datetime
    seconds: float
    """How long the computation took."""

    @property
    def digest(self) -> str:
        """sha256 of the content alone (paths, tables and sha256 of the parts): equal content has an equal digest."""
        content = sorted((part.path, part.table or "", part.sha256) for part in self.parts)
        return hashlib.sha256(canonical_json(content)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, Sequence[Ref]]) -> str:
    """The name of a piece of work: sha256 of stage, version, config and digests of inputs, as 64 hex digits."""
    digests = {name: [ref.digest for ref in refs] for name, refs in inputs.items()}
    return hashlib.sha256(canonical_json([stage, version, config, digests])).hexdigest()


def write_manifest(store: Store, folder: str, manifest: Manifest) -> Ref:
    """Write the manifest: from now on the folder is complete."""
    store.write(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
    return Ref(uri=folder, digest=manifest.digest, kind=manifest.kind)


def read_manifest(store: Store, folder: str) -> Manifest:
    """The folder's manifest. Raises StoreError if there is none, InputError if it cannot be read."""
    try:
        return Manifest.model_validate_json(store.read(f"{folder}/{MANIFEST}"))
    except ValueError as error:
        raise InputError(f"{folder}/{MANIFEST} in {store.uri} is not a manifest of this version: {error}") from error


def to_parquet(schema: type[Contract], frame: pl.DataFrame) -> bytes:
    """`frame` as Parquet with the contract's name and version in its metadata; the same frame gives the same bytes."""
    buffer = io.BytesIO()
    columns = frame.select(schema.column_names())
    metadata = {"redraft.contract": schema.table, "redraft.version": str(schema.version)}
    columns.write_parquet(buffer, compression="zstd", metadata=metadata)
    return buffer.getvalue()


def from_parquet(
    schema: type[Contract], data: bytes, name: str, *, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """The table in `data`, or `columns` of it. Raises InputError if it carries another contract or version."""
    found = contract_of(io.BytesIO(data))
    if found != (schema.table, schema.version):
        raise InputError(f"{name} holds {found or 'no contract'}, expected {(schema.table, schema.version)}")
    return pl.read_parquet(io.BytesIO(data), columns=None if columns is None else list(columns))


def read_parts(
    store: Store, refs: Ref | Sequence[Ref], schema: type[Contract], *, columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """The parts of a table in one or several datasets, one at a time and in order, each checked against its sha256.

    `columns`: only these, in this order; None: all.
    """
    for ref in [refs] if isinstance(refs, Ref) else refs:
        for part in read_manifest(store, ref.uri).parts:
            if part.table == schema.table:
                path = f"{ref.uri}/{part.path}"
                yield from_parquet(schema, read_verified(store, path, part.sha256), path, columns=columns)


def read_table(
    store: Store, refs: Ref | Sequence[Ref], schema: type[Contract], *, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """All rows of a table in one or several datasets, in order. Every part is checked against its sha256.

    `columns`: only these, in this order; None: all.
    """
    empty = schema.create_empty()
    none = empty if columns is None else empty.select(columns)
    return pl.concat([none, *read_parts(store, refs, schema, columns=columns)])


def read_slice(store: Store, ref: Ref, schema: type[Contract], *, start: int, count: int, **where: str) -> pl.DataFrame:
    """Rows [start, start + count) of those whose columns have the values `where`.

    No more of the table than one part is in memory beside them.
    """
    skip, missing, found = start, count, list[pl.DataFrame]([schema.create_empty()])
    for part in read_parts(store, ref, schema):
        rows = part.filter(**where)
        found.append(rows.slice(skip, missing))
        skip, missing = max(0, skip - rows.height), missing - found[-1].height
        if missing == 0:
            break
    return pl.concat(found)


def has_table(store: Store, ref: Ref, schema: type[Contract]) -> bool:
    """Does the dataset hold this table? One without rows counts only if its whole output has no good row."""
    manifest = read_manifest(store, ref.uri)
    return any(part.table == schema.table and (part.rows or not manifest.counts.ok) for part in manifest.parts)

"""Samples -> a folder that `datasets.load_dataset(FOLDER)` opens, and that can be pushed to the hub as it is.

    README.md                             dataset card; its `configs` say which file belongs to which split
    data/train-00000-of-00002.parquet     image, sample_id, prompt, reference, source
    data/validation-00000-of-00001.parquet, data/test-00000-of-00001.parquet

`image` is {bytes, path}: the encoded image as it came, which datasets decodes by itself. A split without rows has no
file. The folder appears whole or not at all.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import InputError
from core.export.files import cannot_write, extension_of
from core.export.source import Source
from data_contracts import Samples

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_TEXTS = ("sample_id", "prompt", "reference", "source")
_FEATURES = {"image": {"_type": "Image"}} | {name: {"dtype": "string", "_type": "Value"} for name in _TEXTS}
_SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *((name, pa.string()) for name in _TEXTS)],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_GROUP_ROWS = 100
_GROUP_BYTES = 64 * 2**20
_SHARD_BYTES = 450 * 2**20


def write(source: Source, target: Path) -> int:
    """Write the folder; returns the number of rows. Raises InputError if there is something at `target` already."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "data").mkdir(parents=True)
        splits = {name: _Split(partial / "data", SPLITS[name]) for name in SPLITS}
        for frame in source.frames(Samples):
            for row in frame.select("split", "image_sha", *_TEXTS).iter_rows(named=True):
                splits[row.pop("split")].add(_row(source, row))
        for split in splits.values():
            split.finish()
        counts = {split.name: split.rows for split in splits.values() if split.rows}
        (partial / "README.md").write_text(card(counts), encoding="utf-8")
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(counts.values())


def card(counts: dict[str, int]) -> str:
    """The dataset card: {"train": 2} -> YAML that names data/train-*, and a line for people."""
    files = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in counts)
    sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        "# Samples of image and text\n\n"
        "`reference` is the correct answer to `prompt` about `image`; `source` is where the row came from.\n"
        f"Rows: {sizes}. Written by Redraft.\n"
    )


def _row(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    sha = row.pop("image_sha")
    if sha is None:
        return {"image": None, **row}
    data = source.image_bytes(sha)
    return {"image": {"bytes": data, "path": f"{sha}.{extension_of(data)}"}, **row}


class _Split:
    """The files of one split, written a group of rows at a time; they get their names when their number is known."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.rows = name, 0
        self._folder = folder
        self._writer: pq.ParquetWriter | None = None
        self._shards = self._shard_bytes = self._group_bytes = 0
        self._group: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._group.append(row)
        self._group_bytes += len(row["image"]["bytes"]) if row["image"] else 0
        if len(self._group) >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._close()
        for index in range(self._shards):
            self._at(index).rename(self._folder / f"{self.name}-{index:05d}-of-{self._shards:05d}.parquet")

    def _at(self, index: int) -> Path:
        return self._folder / f"{self.name}-{index:05d}.parquet"

    def _flush(self) -> None:
        if not self._group:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._at(self._shards), _SCHEMA, compression="zstd")
            self._shards += 1
        self._writer.write_table(pa.Table.from_pylist(self._group, schema=_SCHEMA))
        self.rows += len(self._group)
        self._shard_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
        if self._shard_bytes >= _SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_bytes = None, 0

"""The public formats that can be read, by name, and which of them a file is in.

llava        [{"image", "conversations": [{"from", "value"}]}]              JSON or JSONL
sharegpt     the same
messages     [{"messages": [{"role", "content"}], "images"}]                JSON or JSONL
vicrit       [{"image", "problem", "original_caption", "changed_caption", "solution_original", "solution_target"}]
rediff       [{"image", "conversations", "revise"}], [{"img", "ques", "ans", "pred", "revise"}]
generations  {"generations": [{"question", "generations", "ground_truth"}]}, or such drafts alone      JSON or JSONL
coco         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
imagefolder  {"file_name", "text"} a line                                   JSON or JSONL
parquet      columns of these names, see core.ingest.parquet
"""

from collections import Counter
from collections.abc import Callable, Iterator, Set
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from core.errors import InputError
from core.ingest import coco, generations, imagefolder, llava, messages, rediff, vicrit
from core.ingest.reading import Row
from core.ingest.records import LINE_SUFFIXES, read_members, read_records

Reader: TypeAlias = Callable[[Path], Iterator[Row]]

_FIRST = 50
"""Records that are looked at."""
_STRAY = 5
"""Rows of ReDiff's that are fewer than one in so many are strays."""
_FIRST_ELEMENTS = 1_000_000
"""Elements that are looked at of one big object, at most."""


def _parquet(path: Path) -> Iterator[Row]:
    from core.ingest import parquet  # pyarrow takes a while to import

    return parquet.rows(path)


FORMATS: dict[str, Reader] = {
    "llava": llava.rows,
    "sharegpt": llava.rows,
    "messages": messages.rows,
    "vicrit": vicrit.rows,
    "rediff": rediff.rows,
    "generations": generations.rows,
    "coco": coco.rows,
    "imagefolder": imagefolder.rows,
    "parquet": _parquet,
}

_KEYS: dict[str, tuple[frozenset[str], ...]] = {
    "vicrit": (frozenset({"original_caption", "changed_caption"}),),
    "rediff": (frozenset({"conversations", "revise"}), frozenset({"ques", "pred"})),
    "llava": (frozenset({"conversations"}),),
    "messages": (frozenset({"messages"}),),
    "generations": (frozenset({"generations"}),),
    "imagefolder": tuple(frozenset({i, c}) for i in imagefolder.IMAGES for c in imagefolder.CAPTIONS),
}
"""Keys that tell a format, the most telling first."""
_COCO = {"info", "licenses", "type", "categories", "images", "annotations"}


def format_of(name: str, path: Path) -> str:
    """The format `name`, or for "auto" the one that `path` is in. Raises InputError: there is no such format."""
    if name == "auto":
        return detect(path)
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; there are auto, {', '.join(FORMATS)}")
    return name


def detect(path: Path) -> str:
    """The format of a file, by its suffix and the keys of its first records.

    Raises:
        InputError: the file cannot be read, or its keys fit no format; the message names them.
    """
    if path.suffix.lower() == ".parquet" or _begins_with(path, b"PAR1"):
        return "parquet"
    members = _members(path)
    if "annotations" in members and members.keys() <= _COCO:
        return "coco"
    records = [members] if members else [record.value for record in islice(read_records(path), _FIRST)]
    fitting = Counter(name for record in records if isinstance(record, dict) and (name := _format_of(record.keys())))
    if fitting["rediff"] * _STRAY >= fitting.total() > 0:
        return "rediff"  # what nobody has looked at has no `revise`
    if fitting:
        return max(_KEYS, key=fitting.__getitem__)  # a stray row does not decide; the more telling first
    keys = {key: None for record in records if isinstance(record, dict) for key in record}
    found = f"its keys are {', '.join(keys)}" if keys else "its first records are no objects"
    raise InputError(f"cannot tell the format of {path}: {found}; name it: {', '.join(FORMATS)}")


def _format_of(keys: Set[str]) -> str | None:
    return next((name for name, telling in _KEYS.items() if any(some <= keys for some in telling)), None)


def _members(path: Path) -> dict[str, None]:
    """The first keys of a file that is one big object; none if it is anything else."""
    if _begins_with(path, b"[") or path.suffix.lower() in LINE_SUFFIXES:
        return {}
    found: dict[str, None] = {}
    try:
        for key, _ in islice(read_members(path), _FIRST_ELEMENTS):
            found[key] = None
            if key == "annotations" and found.keys() <= _COCO:  # the rest may be gigabytes
                break
    except InputError:  # JSON lines, most likely: `read_records` knows
        return {}
    return found


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error

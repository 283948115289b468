"""What a configuration points to outside the store, by content: a changed file is new input."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from core.config import RunConfig
from core.errors import InputError


def file_digest(path: Path) -> str:
    """sha256 of a data file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}") from error


def folder_digest(folder: Path | None) -> str:
    """Digest of the names, sizes and times of the files in an image folder; "" without a folder."""
    if folder is None:
        return ""
    if not folder.is_dir():
        raise InputError(f"the image folder {folder} does not exist or is not a folder")
    stats = ((file.relative_to(folder).as_posix(), file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    return _digest(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}" for name, stat in stats)


def checkpoint_digest(folder: str) -> str:
    """Digest of the names and contents of a checkpoint's files; "" without a checkpoint."""
    if not folder:
        return ""
    files = (file for file in sorted(Path(folder).glob("*")) if file.is_file())
    return _digest(f"{file.name}\x1f{file_digest(file)}" for file in files)


def inputs_digest(config: RunConfig) -> str:
    """Digest of the data file, the image folder and the checkpoint that a run starts from; "" if there is none."""
    data = config.data
    if data.source == "scenes" and not config.model.checkpoint:
        return ""
    file = file_digest(Path(data.path)) if data.source == "llava" and data.path else ""
    images = folder_digest(Path(data.images)) if data.source == "llava" and data.images else ""
    return _digest([file, images, checkpoint_digest(config.model.checkpoint)])


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

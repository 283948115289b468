"""What a configuration points to outside the store, by content: a changed file is new input."""

import hashlib
from pathlib import Path

from core.config import RunConfig
from core.errors import InputError
from core.ingest.sources import image_source, lines_digest


def file_digest(path: Path) -> str:
    """sha256 of a data file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}") from error


def checkpoint_digest(folder: str) -> str:
    """Digest of the names and contents of a checkpoint's files; "" without a checkpoint.

    A config.json one level below is among them: LLaVA's vision tower may have its sizes there.
    """
    if not folder:
        return ""
    root = Path(folder)
    files = [file for pattern in ("*", "*/config.json") for file in sorted(root.glob(pattern)) if file.is_file()]
    return lines_digest(f"{file.relative_to(root).as_posix()}\x1f{file_digest(file)}" for file in files)


def inputs_digest(config: RunConfig) -> str:
    """Digest of the data file, the image folder and the checkpoint that a run starts from; "" if there is none."""
    data = config.data
    if data.source == "scenes" and not config.model.checkpoint:
        return ""
    file = images = ""
    if data.source != "scenes":
        file = file_digest(Path(data.path)) if data.path else ""
        images = images_digest(data.images, config.place.s3_endpoint)
    return lines_digest([file, images, checkpoint_digest(config.model.checkpoint)])


def images_digest(place: str, endpoint_url: str = "") -> str:
    """Digest of an image folder or bucket by names, sizes and times; "" without one. Raises InputError."""
    source = image_source(place, endpoint_url=endpoint_url or None)
    return source.digest() if source else ""

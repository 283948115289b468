"""Where the images of a file of rows are: a folder, or a prefix of a bucket. Nothing else is ever read or fetched."""

import hashlib
import os
import posixpath
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from core.errors import InputError, RowError
from core.ingest.images import inside, read_image, resolve_image
from core.ingest.settings import MAX_BYTES

_LONGEST_KEY = 1024
"""Bytes of a key of S3."""


class ImageSource(Protocol):
    """The images that rows may name, by a path relative to a root."""

    def read(self, relative: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        """The encoded bytes.

        Raises:
            RowError: remote_image, outside_image_root, missing_image, image_too_large or unreadable_image.
        """
        ...

    def digest(self) -> str:
        """Digest of what is there, without reading it: a changed image changes it."""
        ...


class FolderImages:
    """A folder on this machine; symlinks must not lead out of it."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"the image folder {root} does not exist or is not a folder")
        self._root = root

    def read(self, relative: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of a file inside the folder."""
        return read_image(resolve_image(self._root, relative), max_bytes=max_bytes)

    def digest(self) -> str:
        """Of names, sizes and times of the files; memory is that of the largest folder's names."""
        found = hashlib.sha256()
        for folder, folders, files in os.walk(self._root):
            folders.sort()
            for name in sorted(files):
                path = Path(folder) / name
                with suppress(OSError):  # a link that leads nowhere
                    stat = path.stat()
                    relative = path.relative_to(self._root).as_posix()
                    found.update(os.fsencode(f"{relative}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\n"))
        return found.hexdigest()


class BucketImages:
    """A prefix of an S3 bucket; keys must not lead out of it."""

    def __init__(self, uri: str, *, endpoint_url: str | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._uri, self._bucket, self._prefix = uri, bucket, prefix.strip("/")
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url)

    def read(self, relative: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of an object below the prefix."""
        key = posixpath.normpath(f"{self._prefix}/{inside(relative)}").lstrip("/")
        if "\0" in key or len(key.encode("utf-8", "surrogatepass")) > _LONGEST_KEY or not _encodes(key):
            raise RowError("missing_image", f"{relative!r} can be no key")
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=key)
            if found["ContentLength"] > max_bytes:
                raise RowError("image_too_large", f"{relative}: {found['ContentLength']} bytes, limit {max_bytes}")
            data: bytes = found["Body"].read()
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            if status == HTTPStatus.NOT_FOUND:
                raise RowError("missing_image", relative) from error
            if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:  # of this object; others may do
                raise RowError("unreadable_image", f"{relative}: {code}") from error
            raise self._fault(error) from error
        except BotoCoreError as error:
            raise self._fault(error) from error
        return data

    def digest(self) -> str:
        """Of keys, sizes and entity tags of the objects."""
        prefix = f"{self._prefix}/" if self._prefix else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            found = [entry for page in pages for entry in page.get("Contents", [])]
        except (ClientError, BotoCoreError) as error:
            raise self._fault(error) from error
        if not found:
            raise InputError(f"there is no image below {self._uri}")
        return lines_digest(f"{one['Key']}\x1f{one['Size']}\x1f{one['ETag']}" for one in found)

    def _fault(self, error: Exception) -> InputError:
        return InputError(f"cannot read the images in {self._uri}: {error}; check bucket, credentials and endpoint")


def image_source(place: str, *, endpoint_url: str | None = None) -> ImageSource | None:
    """The source at `place`: a folder or s3://bucket/prefix; None for "". Raises InputError if it cannot be one."""
    if place.startswith("s3://"):
        return BucketImages(place, endpoint_url=endpoint_url)
    if "://" in place:
        raise InputError(f"images cannot be read from {place!r}: give a folder or s3://bucket/prefix")
    return FolderImages(Path(place)) if place else None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines_digest(lines: Iterable[str]) -> str:
    """sha256 of lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")).hexdigest()

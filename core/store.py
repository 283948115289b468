"""Where bytes live: a folder or an S3 bucket behind one interface. Paths are relative, with forward slashes."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from core.errors import CorruptPart, InputError, StoreError

_DAMAGED = "is damaged (its sha256 differs); run again to compute it anew"
_PIECE = 2**20


class Store(Protocol):
    """Immutable objects by path. Every write is atomic: a reader sees the whole object or none."""

    uri: str

    def exists(self, path: str) -> bool:
        """Is there an object at `path`?"""
        ...

    def read(self, path: str) -> bytes:
        """The object's bytes. Raises StoreError if there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object. Raises StoreError (with what to do) if the disk is full or the bucket refuses."""
        ...

    def write_from(self, path: str, file: Path) -> None:
        """Write an object from a file of this machine, which is gone then. It may be larger than memory. StoreError."""
        ...

    def sha256(self, path: str) -> str:
        """sha256 of the object's bytes, read in pieces. Raises StoreError if there is none."""
        ...

    def local(self, path: str, sha256: str) -> Path:
        """A file on this machine with the object's bytes (the object itself, or a download), checked. CorruptPart."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Sorted paths of all objects below the folder `prefix`."""
        ...

    def move(self, prefix: str, to: str) -> None:
        """Move the folder `prefix` to `to`."""
        ...

    def delete(self, prefix: str) -> None:
        """Delete the folder `prefix`, if it is there."""
        ...


class LocalStore:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = self.root.as_uri()

    def _at(self, path: str) -> Path:
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root):
            raise StoreError(f"{path!r} leaves the store {self.root}")
        return full

    def exists(self, path: str) -> bool:
        """Is there an object at `path`?"""
        return self._at(path).is_file()

    def read(self, path: str) -> bytes:
        """The object's bytes."""
        try:
            return self._at(path).read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {self._at(path)}: {error.strerror}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write to a temporary file beside the target, flush it to the disk, rename."""
        with self._replacing(path) as temporary:
            temporary.write_bytes(data)

    def write_from(self, path: str, file: Path) -> None:
        """Move the file, or copy it from another disk; flushed and renamed as in `write`."""
        with self._replacing(path) as temporary:
            shutil.move(file, temporary)

    @contextmanager
    def _replacing(self, path: str) -> Iterator[Path]:
        target = self._at(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            hint = "free some space and run again: finished work is kept" if error.errno == errno.ENOSPC else "check it"
            raise StoreError(f"cannot write {target}: {error.strerror}; {hint}") from error

    def sha256(self, path: str) -> str:
        """sha256 of the file."""
        try:
            with self._at(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(f"cannot read {self._at(path)}: {error.strerror}") from error

    def local(self, path: str, sha256: str) -> Path:
        """The object itself."""
        check(self, path, sha256)
        return self._at(path)

    def list(self, prefix: str) -> list[str]:
        """Sorted paths of all objects below `prefix`."""
        files = (file for file in self._at(prefix).rglob("*") if file.is_file() and not file.name.startswith("."))
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def move(self, prefix: str, to: str) -> None:
        """Rename the folder."""
        self._at(to).parent.mkdir(parents=True, exist_ok=True)
        self._at(prefix).rename(self._at(to))

    def delete(self, prefix: str) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self._at(prefix), ignore_errors=True)


class S3Store:
    """A prefix in a bucket. `local` downloads once to a cache folder."""

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None = None, cache: Path | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url)
        self._cache = (
            cache
            or Path(tempfile.gettempdir()) / "redraft-s3-cache" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        )

    def _key(self, path: str) -> str:
        if ".." in path.split("/"):
            raise StoreError(f"{path!r} leaves the store {self.uri}")
        return f"{self.prefix}/{path}" if self.prefix else path

    def exists(self, path: str) -> bool:
        """Is there an object at `path`?"""
        try:
            self._client.head_object(Bucket=self.bucket, Key=self._key(path))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise self._error("look at", path, error) from error
        except BotoCoreError as error:
            raise self._error("look at", path, error) from error
        return True

    def read(self, path: str) -> bytes:
        """The object's bytes."""
        try:
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise self._error("read", path, error) from error
        return body

    def write(self, path: str, data: bytes) -> None:
        """One PUT, checked by its sha256 on the way in."""
        try:
            self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, ChecksumAlgorithm="SHA256")
        except (ClientError, BotoCoreError) as error:
            raise self._error("write", path, error) from error

    def write_from(self, path: str, file: Path) -> None:
        """One upload, in parts if it is large, checked by its sha256 on the way in."""
        try:
            self._client.upload_file(str(file), self.bucket, self._key(path), ExtraArgs={"ChecksumAlgorithm": "SHA256"})
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise self._error("write", path, error) from error
        file.unlink()

    def sha256(self, path: str) -> str:
        """sha256 of what the bucket sends."""
        digest = hashlib.sha256()
        try:
            for piece in self._client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"].iter_chunks(_PIECE):
                digest.update(piece)
        except (ClientError, BotoCoreError) as error:
            raise self._error("read", path, error) from error
        return digest.hexdigest()

    def local(self, path: str, sha256: str) -> Path:
        """A cached download; one that is damaged, or of an object that was since computed anew, is replaced."""
        cached = LocalStore(self._cache)
        try:
            return cached.local(path, sha256)
        except StoreError:
            cached.write_from(path, self._downloaded(path))
        try:
            return cached.local(path, sha256)
        except CorruptPart as error:
            raise CorruptPart(f"{path} in {self.uri} {_DAMAGED}") from error

    def _downloaded(self, path: str) -> Path:
        """A new file in the cache folder."""
        self._cache.mkdir(parents=True, exist_ok=True)
        file = self._cache / f".{os.getpid()}.{os.urandom(8).hex()}"
        try:
            self._client.download_file(self.bucket, self._key(path), str(file))
        except (ClientError, BotoCoreError, Boto3Error) as error:
            file.unlink(missing_ok=True)
            raise self._error("read", path, error) from error
        return file

    def list(self, prefix: str) -> list[str]:
        """Sorted paths of all objects below `prefix`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(prefix) + "/"
        )
        try:
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        except (ClientError, BotoCoreError) as error:
            raise self._error("list", prefix, error) from error
        return sorted(key[len(self.prefix) :].lstrip("/") for key in keys)

    def move(self, prefix: str, to: str) -> None:
        """Copy every object, then delete the old ones (S3 has no rename)."""
        for path in self.list(prefix):
            source = {"Bucket": self.bucket, "Key": self._key(path)}
            target = self._key(to + path[len(prefix) :])
            try:
                self._client.copy_object(Bucket=self.bucket, Key=target, CopySource=source)
            except (ClientError, BotoCoreError) as error:
                raise self._error("move", path, error) from error
        self.delete(prefix)

    def delete(self, prefix: str) -> None:
        """Delete every object below `prefix`, and what was cached of it."""
        for path in self.list(prefix):
            try:
                self._client.delete_object(Bucket=self.bucket, Key=self._key(path))
            except (ClientError, BotoCoreError) as error:
                raise self._error("delete", path, error) from error
        LocalStore(self._cache).delete(prefix)

    def _error(self, verb: str, path: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {verb} {self.uri}/{path}: {error}; check the bucket, the credentials and the endpoint"
        )


def open_store(uri: str, *, endpoint_url: str | None = None, cache: Path | None = None) -> Store:
    """The store at `uri`: a folder ("/data/redraft", "file:///data/redraft") or "s3://bucket/prefix"."""
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix, endpoint_url=endpoint_url, cache=cache)
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"unknown kind of store {uri!r}: use a folder or s3://bucket/prefix")
    return LocalStore(Path(uri.removeprefix("file://")))


def read_verified(store: Store, path: str, sha256: str) -> bytes:
    """The bytes at `path`. Raises CorruptPart if they are not those that `sha256` promises."""
    data = store.read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptPart(f"{path} in {store.uri} {_DAMAGED}")
    return data


def check(store: Store, path: str, sha256: str) -> None:
    """As `read_verified`, for an object that may be larger than memory."""
    if store.sha256(path) != sha256:
        raise CorruptPart(f"{path} in {store.uri} {_DAMAGED}")


def image_path(sha: str) -> str:
    """Where an image lives, by the sha256 of its encoded bytes."""
    return f"images/{sha[:2]}/{sha}"


def put_image(store: Store, data: bytes) -> str:
    """Store an encoded image once, or again if what is there is damaged; returns its sha256."""
    sha = hashlib.sha256(data).hexdigest()
    path = image_path(sha)
    if not store.exists(path) or store.read(path) != data:
        store.write(path, data)
    return sha

"""One behaviour, two stores: a folder, and a bucket behind moto's real HTTP server."""

import hashlib

import boto3
import pytest

from core.errors import CorruptPart, InputError, StoreError
from core.store import LocalStore, S3Store, Store, image_path, open_store, put_image, read_verified


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path, monkeypatch) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return S3Store(bucket, "team/redraft", endpoint_url=endpoint, cache=tmp_path / "cache")


def test_objects_round_trip(store):
    store.write("datasets/a/part.bin", b"one")
    store.write("datasets/a/part.bin", b"two")
    assert store.read("datasets/a/part.bin") == b"two"
    assert store.local("datasets/a/part.bin", hashlib.sha256(b"two").hexdigest()).read_bytes() == b"two"
    assert store.exists("datasets/a/part.bin")
    assert not store.exists("datasets/a")
    assert not store.exists("datasets/b/part.bin")


def test_a_file_is_moved_in_as_an_object(store, tmp_path):
    data = bytes(range(256)) * 50_000  # more than one part of an upload, and than one piece of a reading
    store.write("checkpoints/a/model", b"before")
    file = tmp_path / "weights"
    file.write_bytes(data)
    store.write_from("checkpoints/a/model", file)
    assert not file.exists()
    assert store.list("checkpoints") == ["checkpoints/a/model"]
    assert store.sha256("checkpoints/a/model") == hashlib.sha256(data).hexdigest()
    assert store.local("checkpoints/a/model", hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_folders_list_move_and_delete_without_touching_neighbours(store):
    for path in ("d/x/1", "d/x/deep/2", "d/xy/3"):
        store.write(path, path.encode())
    assert store.list("d/x") == ["d/x/1", "d/x/deep/2"]
    store.move("d/x", "aside/x")
    assert store.list("d/x") == []
    assert store.read("aside/x/deep/2") == b"d/x/deep/2"
    store.delete("aside/x")
    assert store.list("aside/x") == []
    assert store.list("d/xy") == ["d/xy/3"]


def test_reading_what_is_not_there_is_a_store_error(store):
    with pytest.raises(StoreError, match="missing"):
        store.read("missing")
    with pytest.raises(StoreError, match="missing"):
        store.sha256("missing")
    with pytest.raises(StoreError, match="missing"):
        store.local("missing", "0" * 64)


def test_a_path_cannot_leave_the_store(store):
    with pytest.raises(StoreError, match="leaves the store"):
        store.write("../outside", b"")


def test_damaged_bytes_are_noticed_on_read(store):
    store.write("part", b"good")
    sha = hashlib.sha256(b"good").hexdigest()
    assert read_verified(store, "part", sha) == b"good"
    store.write("part", b"goo")
    with pytest.raises(CorruptPart, match="run again"):
        read_verified(store, "part", sha)


def test_an_image_is_stored_once(store):
    assert put_image(store, b"pixels") == put_image(store, b"pixels")
    assert len(store.list("images")) == 1


def test_a_damaged_image_is_stored_anew(store):
    sha = put_image(store, b"pixels")
    store.write(image_path(sha), b"pix")
    assert put_image(store, b"pixels") == sha
    assert store.read(image_path(sha)) == b"pixels"


def test_a_local_file_is_what_its_checksum_promises_even_if_it_was_fetched_before(store):
    old, new = (hashlib.sha256(data).hexdigest() for data in (b"old", b"new"))
    store.write("checkpoints/a/model", b"old")
    path = store.local("checkpoints/a/model", old)
    store.write("checkpoints/a/model", b"new")
    assert store.local("checkpoints/a/model", new).read_bytes() == b"new"
    if isinstance(store, S3Store):
        path.write_bytes(b"ne")
        assert store.local("checkpoints/a/model", new).read_bytes() == b"new"
    store.write("checkpoints/a/model", b"ne")
    with pytest.raises(CorruptPart):
        store.local("checkpoints/a/model", old)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_object(tmp_path):
    store = LocalStore(tmp_path)
    store.write("full/.keep", b"")
    (tmp_path / "full" / "part").symlink_to("/dev/full")  # the kernel's own ENOSPC
    with pytest.raises(OSError, match="No space"), (tmp_path / "full" / "part").open("wb", buffering=0) as file:
        file.write(b"x")
    (tmp_path / "full" / "part").unlink()
    with pytest.MonkeyPatch.context() as patch:

        def no_space(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("core.store.os.fsync", no_space)
        with pytest.raises(StoreError, match=r"No space left on device.*free some space"):
            store.write("full/part", b"x")
    assert store.list("full") == []


def test_an_unknown_scheme_is_a_clear_error():
    with pytest.raises(InputError, match="s3://bucket/prefix"):
        open_store("gs://bucket")

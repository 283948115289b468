"""Images of a folder and of a bucket (moto's real HTTP server): the same images, the same reasons."""

import hashlib

import boto3
import pytest

from core.errors import InputError, RowError
from core.ingest.sources import ImageSource, image_source

FILES = {"a.png": b"one", "deep/b.png": b"two two"}


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch):
    """put(path, data), and source() for what has been put."""
    if request.param == "folder":
        root = tmp_path / "images"

        def put(path: str, data: bytes) -> None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)

        return put, lambda: image_source(str(root))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="elsewhere/secret.png", Body=b"secret")
    return (
        lambda path, data: client.put_object(Bucket=bucket, Key=f"team/images/{path}", Body=data),
        lambda: image_source(f"s3://{bucket}/team/images", endpoint_url=endpoint),
    )


@pytest.fixture
def source(place) -> ImageSource:
    put, open_source = place
    for path, data in FILES.items():
        put(path, data)
    return open_source()


def test_images_are_read_by_their_path(source):
    assert source.read("./a.png") == source.read("a.png")
    assert {path: source.read(path) for path in FILES} == FILES


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.png", "missing_image"),
        ("deep", "missing_image"),
        ("../elsewhere/secret.png", "outside_image_root"),
        ("/etc/passwd", "outside_image_root"),
        ("deep/../../elsewhere/secret.png", "outside_image_root"),
        ("http://example.com/a.png", "remote_image"),
        ("s3://other/a.png", "remote_image"),
        ("data:image/png;base64,AAAA", "remote_image"),
        ("\ud800", "missing_image"),
        ("x" * 2000, "missing_image"),
        ("a\0.png", "missing_image"),
    ],
)
def test_what_cannot_be_read_has_a_reason(source, path, reason):
    with pytest.raises(RowError) as error:
        source.read(path)
    assert error.value.reason == reason


def test_large_files_are_not_read(source):
    assert source.read("a.png", max_bytes=3) == b"one"
    with pytest.raises(RowError, match="image_too_large"):
        source.read("deep/b.png", max_bytes=3)


def test_a_changed_or_new_image_changes_the_digest(place, source):
    put, open_source = place
    digests = {source.digest(), open_source().digest()}
    assert len(digests) == 1
    put("a.png", b"another")
    digests.add(open_source().digest())
    put("c.png", b"new")
    digests.add(open_source().digest())
    assert len(digests) == 3


def test_places_that_cannot_hold_images_are_said(tmp_path):
    assert image_source("") is None
    with pytest.raises(InputError, match="does not exist"):
        image_source(str(tmp_path / "none"))
    with pytest.raises(InputError, match="give a folder or s3"):
        image_source("https://example.com/images")


def test_a_prefix_without_any_image_is_said(s3_endpoint, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="empty")
    with pytest.raises(InputError, match="no image below s3://empty/images"):
        image_source("s3://empty/images", endpoint_url=s3_endpoint).digest()

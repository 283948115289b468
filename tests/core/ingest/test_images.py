import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from core.errors import RowError
from core.ingest.images import StoredImages, decode, read_image, resolve_image, size_of, width_and_height


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def reason_of(call, *args, **options):
    with pytest.raises(RowError) as caught:
        call(*args, **options)
    return caught.value.reason


def gradient(height=24, width=40):
    y_H1, x_1W = np.arange(height)[:, None], np.arange(width)[None, :]
    return np.stack([y_H1 * 5 + 0 * x_1W, x_1W * 4 + 0 * y_H1, (y_H1 * x_1W) % 251], axis=-1).astype(np.uint8)


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_decode_to_the_very_pixels(file_format):
    pixels = gradient()
    decoded = decode(encoded(Image.fromarray(pixels), file_format))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient()
    stored = {  # how a camera stores the upright picture under each value of the EXIF tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes()))
    np.testing.assert_array_equal(decoded, upright)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_size_is_that_of_what_is_decoded(file_format, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encoded(Image.fromarray(gradient()), file_format, **({} if file_format == "BMP" else {"exif": exif}))
    assert size_of(data) == decode(data).shape[1::-1]


def test_the_size_of_a_photo_is_read_off_its_header():
    data = encoded(Image.fromarray(gradient()), "JPEG")
    assert size_of(data[:-200]) == (40, 24)
    assert reason_of(decode, data[:-200]) == "truncated_image"
    assert reason_of(size_of, data, max_pixels=100) == "decompression_bomb"
    assert reason_of(size_of, b"no image") == "not_an_image"


def test_an_image_of_the_store_is_not_decoded_to_be_measured():
    data = encoded(Image.fromarray(gradient()), "JPEG")
    assert width_and_height(StoredImages(lambda sha: data[:-200]), "sha") == (40, 24)
    assert width_and_height(lambda sha: gradient(), "sha") == (40, 24)


def test_broken_exif_is_ignored():
    pixels = gradient()
    decoded = decode(encoded(Image.fromarray(pixels), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"))
    np.testing.assert_array_equal(decoded, pixels)


def test_alpha_is_composed_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (255, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    decoded = decode(encoded(Image.fromarray(rgba)))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[1, 0].tolist() == [127, 127, 127]


def test_transparent_palette_colour_is_white_and_the_others_keep_theirs():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    decoded = decode(encoded(image, transparency=0))
    assert decoded[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_16_bit_grey_is_scaled_by_its_full_range():
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(grey)))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 300.0], [0, 100, 255])]
)
def test_float_grey_is_unit_range_or_bytes(values, expected):
    decoded = decode(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))
    assert decoded[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new(mode, (5, 3))
    file_format = "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"
    assert decode(encoded(image, file_format)).shape == (3, 5, 3)


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "PNG"):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_rejected(file_format, share):
    data = encoded(Image.effect_noise((160, 120), 90), file_format)
    assert reason_of(decode, data[: int(len(data) * share)]) == "truncated_image"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (bytes(4096), "empty_file"),
        (b"<!DOCTYPE html><html><title>404</title></html>", "not_an_image"),
        (b"just a text", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs_pointer"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "broken_image"),
        (png_header(30_000, 30_000), "decompression_bomb"),
        (png_header(8_000, 8_000), "decompression_bomb"),
    ],
)
def test_hostile_files_have_their_reason(data, reason):
    assert reason_of(decode, data) == reason


def test_compressed_text_that_explodes_is_a_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    assert reason_of(decode, encoded(Image.new("RGB", (2, 2)), pnginfo=info)) == "decompression_bomb"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]), st.data())
def test_no_damage_escapes_as_anything_but_a_row_error(file_format, data):
    blob = bytearray(encoded(Image.fromarray(gradient()), file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(blob), max_pixels=1_000_000)
    except RowError:
        return
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("http://example.org/a.jpg", "remote_image"),
        ("S3://bucket/a.jpg", "remote_image"),
        ("file:///etc/passwd", "remote_image"),
        ("//host/share/a.jpg", "remote_image"),
        ("data:image/png;base64,AAAA", "remote_image"),
        ("/etc/passwd", "outside_image_root"),
        ("../secret.png", "outside_image_root"),
        ("sub/../a.png", "outside_image_root"),
        ("..\\secret.png", "outside_image_root"),
        ("C:\\windows\\a.png", "outside_image_root"),
        ("out/secret.png", "outside_image_root"),
        ("link.png", "outside_image_root"),
        ("nothing.png", "missing_image"),
        ("", "missing_image"),
        ("a\0.png", "missing_image"),
        ("a" * 5000, "missing_image"),
        ("loop", "missing_image"),
        ("fifo", "missing_image"),
    ],
)
def test_paths_cannot_leave_the_root(tmp_path, name, reason):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "out").symlink_to(tmp_path)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "fifo")
    assert reason_of(resolve_image, root, name) == reason


def test_names_with_spaces_unicode_and_inner_symlinks_resolve(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "名前 with space & ünï: 1.jpg"
    file.write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    assert resolve_image(tmp_path, f"link/{file.name}") == file.resolve()


def test_a_file_over_the_size_limit_is_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12345")
    assert read_image(tmp_path / "a.png", max_bytes=5) == b"12345"
    assert reason_of(read_image, tmp_path / "a.png", max_bytes=4) == "image_too_large"

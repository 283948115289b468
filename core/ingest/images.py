"""The one safe image decoder: bytes of a stranger in, uint8 RGB or a `RowError` out.

Rules of colour (documented once, here):
- EXIF orientation is applied; a broken EXIF block is ignored.
- Palette, grey, 1-bit, CMYK, YCbCr and LAB become sRGB by Pillow's conversion; embedded ICC profiles are not applied.
- Alpha (and a palette's or PNG's transparent colour) is composed over white.
- 16-bit grey is scaled by its full range (65535 -> 255), 32-bit grey is clipped to 16 bits first, float grey is taken
  as [0, 1] if all of it lies there and as [0, 255] otherwise.
- Of an animation the first frame counts.
"""

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from core.errors import RowError
from core.ingest.settings import MAX_BYTES, MAX_PIXELS

_T = TypeVar("_T")
LoadImage = Callable[[str], NDArray[np.uint8]]
"""sha256 -> uint8 RGB (height, width, 3)."""

_PLAIN = ("RGB", "L")
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

_URL = re.compile(r"^([a-z][a-z0-9+.-]+:|//|\\\\)", re.IGNORECASE)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, struct.error, OverflowError)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an encoded image to uint8 (H, W, 3) RGB.

    Raises:
        RowError: empty_file, lfs_pointer, not_an_image, truncated_image, broken_image or decompression_bomb.
    """
    return _decoded(data, max_pixels, lambda image: _to_rgb(_upright(image)))


def size_of(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of what `decode` gives; of a JPEG its header says them, whose pixels may be damaged.

    Raises:
        RowError: as `decode`.
    """
    found = _opened(data, max_pixels, _size_in_header)
    if found is not None:
        return found
    height, width = decode(data, max_pixels=max_pixels).shape[:2]
    return width, height


def _size_in_header(image: Image.Image) -> tuple[int, int] | None:
    """Upright; None where the header does not tell all: a PNG's orientation may stand behind its pixels."""
    if image.format != "JPEG":
        return None
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except _BROKEN:
        turned = False
    width, height = image.size
    return (height, width) if turned else (width, height)


@dataclass(frozen=True)
class StoredImages:
    """Images by their sha256, decoded. `read` gives their encoded bytes."""

    read: Callable[[str], bytes]

    def __call__(self, sha: str) -> NDArray[np.uint8]:
        """uint8 RGB (height, width, 3)."""
        return decode(self.read(sha))


def width_and_height(load_image: LoadImage, sha: str) -> tuple[int, int]:
    """Of an image, in pixels; one of the store need not be decoded for that."""
    if isinstance(load_image, StoredImages):
        return size_of(load_image.read(sha))
    height, width = load_image(sha).shape[:2]
    return width, height


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise what `decode` would raise, but for less: the pixels of a plain photo are not copied."""
    _decoded(data, max_pixels, lambda image: None if image.mode in _PLAIN else _to_rgb(_upright(image)))


def _decoded(data: bytes, max_pixels: int, use: Callable[[Image.Image], _T]) -> _T:
    def loaded(image: Image.Image) -> _T:
        image.load()
        return use(image)

    return _opened(data, max_pixels, loaded)


def _opened(data: bytes, max_pixels: int, use: Callable[[Image.Image], _T]) -> _T:
    if not data.strip(b"\0"):
        raise RowError("empty_file", f"{len(data)} bytes")
    if data.startswith(_LFS_POINTER):
        raise RowError("lfs_pointer", "the file is a Git LFS pointer: run `git lfs pull` where the images come from")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise RowError("decompression_bomb", f"{image.width}x{image.height} pixels, limit {max_pixels}")
            return use(image)
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError("decompression_bomb", str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):  # it starts as an image does, but its header does not parse
            raise RowError("broken_image", f"the header after {data[:4]!r} is damaged") from error
        raise RowError("not_an_image", f"starts with {data[:24]!r}") from error
    except _BROKEN as error:
        raise RowError(_reason_of(str(error)), str(error)) from error


def inside(relative: str) -> str:
    """`relative`, if it is a relative path that stays inside its root.

    Raises:
        RowError: remote_image (a URL or data: URL) or outside_image_root.
    """
    if _URL.match(relative) and not re.match(r"^[a-z]:[\\/]", relative, re.IGNORECASE):
        raise RowError("remote_image", relative)
    shapes = (PurePosixPath(relative), PureWindowsPath(relative))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in shapes):
        raise RowError("outside_image_root", relative)
    return relative


def resolve_image(root: Path, relative: str) -> Path:
    """The file that `relative` names inside `root`, symlinks resolved; nothing is ever fetched.

    Raises:
        RowError: remote_image (a URL or data: URL), outside_image_root, or missing_image.
    """
    inside(relative)
    try:
        base = root.resolve(strict=True)
        path = (base / relative).resolve()
        held, there = path.is_relative_to(base), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of symlinks
        raise RowError("missing_image", f"{relative}: {error}") from error
    if not held:
        raise RowError("outside_image_root", f"{relative} leads to {path}")
    if not there:
        raise RowError("missing_image", relative)
    return path


def read_image(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of an image file.

    Raises:
        RowError: image_too_large, or unreadable_image when the file system refuses.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise RowError("image_too_large", f"{path.name}: {size} bytes, limit {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise RowError("unreadable_image", f"{path.name}: {error.strerror}") from error


def _reason_of(message: str) -> str:
    """Sort Pillow's many messages into three reasons."""
    text = message.lower()
    if "too large" in text or "exceeds limit" in text:
        return "decompression_bomb"
    return "truncated_image" if "truncat" in text or "not enough" in text else "broken_image"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_grey_to_8_bits(image))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)


def _grey_to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    values_HW = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values_HW = np.nan_to_num(values_HW, posinf=255.0, neginf=0.0)
        unit = values_HW.min() >= 0.0 and values_HW.max() <= 1.0
        scaled_HW = values_HW * 255.0 if unit else values_HW
    else:
        scaled_HW = values_HW / 257.0
    return np.clip(np.rint(scaled_HW), 0, 255).astype(np.uint8)

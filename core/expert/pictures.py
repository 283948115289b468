"""Images made small enough for the endpoint: scaled down and encoded again, the same bytes for the same image.

An image within the limits is sent as it is.
"""

import io

from PIL import Image

from core.errors import RowError
from core.expert.settings import ExpertSettings
from core.ingest.images import decode

_QUALITIES = (90, 80, 70, 60)
_SHRINK = 0.75
_SMALLEST = 32
"""Pixels of the longer side below which nothing can be recognised."""


def fit_image(data: bytes, settings: ExpertSettings) -> bytes:
    """The encoded image with no side longer than image_max_side and no more than image_max_bytes bytes.

    A PNG that only has to be scaled stays one; whatever is too many bytes becomes a JPEG of ever lower quality, then
    of ever fewer pixels.

    Raises:
        RowError: no readable image (see core.ingest.images), or image_too_large if it cannot be made small enough.
    """
    side, most = settings.image_max_side, settings.image_max_bytes
    if side is None and (most is None or len(data) <= most):
        return data
    pixels = Image.fromarray(decode(data))
    longest = max(pixels.size)
    target = longest if side is None else min(side, longest)
    if target == longest and (most is None or len(data) <= most):
        return data
    if data.startswith(b"\x89PNG") and target < longest:
        encoded = _encoded(_scaled(pixels, target), "PNG")
        if most is None or len(encoded) <= most:
            return encoded
    while True:
        scaled = _scaled(pixels, target)
        for quality in _QUALITIES:
            encoded = _encoded(scaled, "JPEG", quality=quality)
            if most is None or len(encoded) <= most:
                return encoded
        if target <= _SMALLEST:
            raise RowError("image_too_large", f"{len(encoded)} bytes at {target} pixels, expert.image_max_bytes {most}")
        target = max(int(target * _SHRINK), _SMALLEST)


def _scaled(pixels: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side of so many pixels; nothing is enlarged."""
    factor = longest / max(pixels.size)
    if factor >= 1:
        return pixels
    width, height = (max(1, round(length * factor)) for length in pixels.size)
    return pixels.resize((width, height), Image.Resampling.LANCZOS)


def _encoded(pixels: Image.Image, form: str, **options: int) -> bytes:
    data = io.BytesIO()
    pixels.save(data, form, **options)
    return data.getvalue()

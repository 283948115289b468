"""The report's gallery: drafts with the expert's marks in place, and images small and safe enough to inline."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from core.errors import RowError
from core.ingest.images import decode
from flows.summary import GalleryItem, GallerySegment

MAX_SIDE = 640
PIXEL_ART = 128


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of a draft: `plain`, `corrected` (`text` is struck, `target` replaces it) or `refused` (stays as it is)."""

    kind: Literal["plain", "corrected", "refused"]
    text: str
    target: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a data URL, with the layout that suits it."""

    url: str
    width: int
    height: int

    @property
    def layout(self) -> str:
        """CSS classes: `wide` stands above the text, `pixels` are enlarged without blur, a `photo` has more room."""
        wide = "wide " if self.width > 1.8 * self.height else ""
        return wide + ("pixels" if max(self.width, self.height) <= PIXEL_ART else "photo")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the template shows of one `GalleryItem`."""

    item: GalleryItem
    picture: Picture | None
    pieces: list[Piece]
    not_placed: list[GallerySegment]


def card_of(item: GalleryItem) -> Card:
    """Prepare one item; an image that cannot be decoded is left out."""
    pieces, not_placed = mark(item.draft, item.segments)
    return Card(item=item, picture=_picture(item.image), pieces=pieces, not_placed=not_placed)


def mark(draft: str, segments: Sequence[GallerySegment]) -> tuple[list[Piece], list[GallerySegment]]:
    """Cut a draft at its segments.

    Returns:
        The pieces, whose texts joined are the draft, and the segments that have no place of their own in it (not
        found, outside the draft, or overlapping one already placed; accepted segments are placed first).
    """
    placed: list[GallerySegment] = []
    left_over: list[GallerySegment] = []
    for segment in sorted(segments, key=lambda segment: segment.reason is not None):
        fits = 0 <= segment.start <= segment.end <= len(draft) and (segment.end > segment.start or segment.target)
        free = all(segment.end <= other.start or other.end <= segment.start for other in placed)
        (placed if fits and free else left_over).append(segment)
    pieces: list[Piece] = []
    done = 0
    for segment in sorted(placed, key=lambda segment: (segment.start, segment.end)):
        if segment.start > done:
            pieces.append(Piece(kind="plain", text=draft[done : segment.start]))
        pieces.append(
            Piece(
                kind="corrected" if segment.reason is None else "refused",
                text=draft[segment.start : segment.end],
                target=segment.target,
                reason=segment.reason or "",
            )
        )
        done = segment.end
    if done < len(draft):
        pieces.append(Piece(kind="plain", text=draft[done:]))
    return pieces, left_over


def _picture(data: bytes | None) -> Picture | None:
    if data is None:
        return None
    try:
        image = Image.fromarray(decode(data))
    except RowError:
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file_format = "PNG" if max(image.size) <= PIXEL_ART else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=85)
    url = f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(url=url, width=image.width, height=image.height)

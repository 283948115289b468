"""COCO captions -> raw rows, one a caption, without a prompt (so that the settings' default prompt is used).

    {"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "A red ring."}]}
    -> RawRow(place="captions.json:0", image="9.jpg", prompt="", reference="A red ring.")

The file is read twice, because images may stand behind the annotations: first the names of the images (kept in memory,
some hundred bytes each), then the captions one by one. An image without a caption is no row.
"""

from collections.abc import Iterator
from pathlib import Path

from core.errors import InputError, RowError
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, checked, text_at
from core.ingest.records import Json, read_members
from core.ingest.rows import RawRow


def rows(path: Path) -> Iterator[Row]:
    """The captions of a file, in order; one without an image or a text becomes a `BadRow`.

    Raises:
        InputError: the file has no `images`, or no `annotations`.
    """
    names = _image_names(path)

    def parse(place: str, record: JsonObject) -> list[Row]:
        name = names.get(_key(record.get("image_id")))
        if name is None:
            raise RowError("unknown_image", f"no image has the id {record.get('image_id')!r}")
        return [RawRow(place=place, image=name, prompt="", reference=text_at(record, "caption"))]

    annotations = (value for key, value in read_members(path) if key == "annotations")
    for index, annotation in enumerate(annotations):
        yield from checked(f"{path.name}:{index}", annotation, parse)


def _image_names(path: Path) -> dict[str, str]:
    """File name by id.

    Entries that have no id or no name are left out: their captions are then rejected as unknown_image.
    """
    names: dict[str, str] = {}
    seen: dict[str, None] = {}
    for key, value in read_members(path):
        seen[key] = None
        if key == "images" and isinstance(value, dict) and isinstance(name := value.get("file_name"), str):
            names[_key(value.get("id"))] = name
    for key in ("images", "annotations"):
        if key not in seen:
            raise InputError(f"{path} has no `{key}` (or none in it), as COCO captions have; it has {', '.join(seen)}")
    return names


def _key(image_id: Json) -> str:
    """Ids are compared as JSON has them: 9 is not "9"."""
    return repr(image_id)

"""Image folders with a metadata.jsonl (the layout of Hugging Face's imagefolder) -> one LLaVA JSON file.

python -m core.ingest.convert metadata.jsonl out.json --image image --caption captions --prompt "Describe it."
"""

import argparse
import json
from pathlib import Path

from core.errors import InputError, RowError
from core.ingest.llava import PLACEHOLDER
from core.ingest.records import Json, read_records


def convert_metadata(source: Path, target: Path, *, image_key: str, caption_key: str, prompt: str) -> int:
    """Write `source`'s rows as LLaVA JSON, a row for each caption (a caption may be a list); returns their number.

    Nothing is dropped here: a row without a caption becomes a row with an empty one, for ingest to reject and count.

    Raises:
        InputError: a file cannot be read or written, a line is no JSON object, or no row has one of the two keys.
    """
    rows: list[dict[str, Json]] = []
    keys: set[str] = set()
    for record in read_records(source):
        if isinstance(record.value, RowError) or not isinstance(record.value, dict):
            raise InputError(f"{source}: {record.place} is no JSON object: {record.value!s:.200}")
        keys |= record.value.keys()
        captions = record.value.get(caption_key)
        for caption in captions if isinstance(captions, list) and captions else [captions]:
            rows.append(_llava_row(len(rows), record.value.get(image_key), caption or "", prompt))
    for key in (image_key, caption_key):
        if key not in keys:
            raise InputError(f"{source} has no key {key!r}; its keys are {', '.join(sorted(keys))}")
    _write(target, json.dumps(rows, indent=1))
    return len(rows)


def _write(target: Path, text: str) -> None:
    """The whole file or none."""
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error


def _llava_row(number: int, image: Json, caption: Json, prompt: str) -> dict[str, Json]:
    turns: list[Json] = [
        {"from": "human", "value": f"{PLACEHOLDER}\n{prompt}"},
        {"from": "gpt", "value": caption},
    ]
    return {"id": number, "image": image, "conversations": turns}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m core.ingest.convert", description=convert_metadata.__doc__)
    parser.add_argument("source", type=Path, help="metadata.jsonl")
    parser.add_argument("target", type=Path, help="the LLaVA JSON file to write")
    parser.add_argument("--image", default="image", help="key of the image path (default: %(default)s)")
    parser.add_argument("--caption", default="caption", help="key of the caption or captions (default: %(default)s)")
    parser.add_argument("--prompt", default="Describe the image.", help="the question (default: %(default)s)")
    args = parser.parse_args()
    try:
        count = convert_metadata(
            args.source, args.target, image_key=args.image, caption_key=args.caption, prompt=args.prompt
        )
    except InputError as error:
        parser.exit(1, f"{error}\n")
    parser.exit(0, f"{count} rows -> {args.target}\n")


if __name__ == "__main__":
    main()

"""Samples -> LLaVA's conversations.

    Samples(sample_id="s1", image_sha="0a1b...", prompt="Describe.", reference="A red ring.")
    -> {"id": "s1", "image": "images/0a1b....jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe."},
                                                                    {"from": "gpt", "value": "A red ring."}]}

The image keeps its encoded bytes; a sample without one has neither `image` nor a placeholder.
"""

from pathlib import Path

from core.export.files import Place, writing_rows
from core.export.source import Source
from core.ingest.json_stream import Json
from core.ingest.layouts import conversation
from core.ingest.reading import PLACEHOLDER
from data_contracts import Samples


def write(source: Source, target: Path) -> int:
    """Write a .json or .jsonl file, or a folder with llava.json and the images; returns the number of rows."""
    place, count = Place(target, "llava", source), 0
    with writing_rows(place.rows) as write_row:
        for frame in source.frames(Samples):
            for row in frame.select("sample_id", "image_sha", "prompt", "reference").iter_rows(named=True):
                image: dict[str, Json] = {"image": place.image(row["image_sha"])} if row["image_sha"] else {}
                turns = conversation(asked(row["prompt"], row["image_sha"]), row["reference"])
                write_row({"id": row["sample_id"], **image, "conversations": turns})
                count += 1
    return count


def asked(prompt: str, image_sha: str | None) -> str:
    r"""The human turn: "Describe." -> "<image>\nDescribe."."""
    return f"{PLACEHOLDER}\n{prompt}" if image_sha else prompt

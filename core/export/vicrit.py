"""Samples and their hallucination pairs -> ViCrit's rows.

    -> {"image": "images/0a1b....jpg", "problem": "Describe.", "original_caption": "A red ring.",
        "changed_caption": "A blue ring.", "solution_original": "red", "solution_target": "blue", "type": "attribute"}

A solution that stands against an empty one is written without the space beside it ("tattooed", not "tattooed "), as
ViCrit has it; `type` is left out where nobody said it.
"""

from pathlib import Path

from core.errors import InputError
from core.export.files import Place, writing_rows
from core.export.lookup import Lookup
from core.export.source import Source
from core.ingest.json_stream import Json
from data_contracts import HallucinationPairs, Samples


def write(source: Source, target: Path) -> int:
    """Write a .json or .jsonl file, or a folder with vicrit.json and the images; returns the number of rows.

    Raises:
        InputError: a pair's sample is not among the samples.
    """
    place, count = Place(target, "vicrit", source), 0
    with (
        Lookup(source.frames(Samples), ("sample_id", "image_sha", "prompt")) as samples,
        writing_rows(place.rows) as write_row,
    ):
        for frame in source.frames(HallucinationPairs):
            found = samples.of(frame["sample_id"].unique())
            for pair in frame.iter_rows(named=True):
                sample = found.get(pair["sample_id"])
                if sample is None:
                    raise InputError(f"pair {pair['pair_id']} has no sample {pair['sample_id']} in this dataset")
                image: dict[str, Json] = {"image": place.image(sample["image_sha"])} if sample["image_sha"] else {}
                before, after = solutions(pair["solution_original"], pair["solution_target"])
                kind: dict[str, Json] = {"type": pair["kind"]} if pair["kind"] else {}
                write_row(
                    {
                        **image,
                        "problem": sample["prompt"],
                        "original_caption": pair["original_caption"],
                        "changed_caption": pair["changed_caption"],
                        "solution_original": before,
                        "solution_target": after,
                        **kind,
                    }
                )
                count += 1
    return count


def solutions(before: str, after: str) -> tuple[str, str]:
    """How a pair's two solutions are written: ("", "tall ") -> ("", "tall"); ("red", "blue") stays."""
    return (before, after) if before.strip() and after.strip() else (before.strip(), after.strip())

"""Clean image-text samples: what the model is asked, and what a correct answer is."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract

SPLITS = ("train", "dev", "test")


class Samples(Contract):
    """One sample a row. `reference` is the correct answer to `prompt` about the image `image_sha`."""

    table: ClassVar[str] = "samples"

    sample_id = dy.String(primary_key=True)
    image_sha = dy.String(nullable=True, regex=r"^[0-9a-f]{64}$", description="sha256 of the stored image; null: text")
    prompt = dy.String(min_length=1)
    reference = dy.String(min_length=1)
    split = dy.Enum(SPLITS)
    source = dy.String(description="where it came from: a world and its version, or a file")
    grounding = dy.List(
        dy.Struct({"start": dy.Int32(), "end": dy.Int32(), "region": dy.Int16()}),
        nullable=True,
        description="char spans of `reference` and the image region (index of the patch) they speak of; null: unknown",
    )

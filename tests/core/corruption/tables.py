"""A word-level tokenizer and small tables for the tests of corruption and batches."""

import numpy as np
import polars as pl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_contracts import HallucinationPairs, Samples

SPECIAL = ("[UNK]", "[MASK]", "[EOS]", "[PAD]")
WORDS = ("describe", "the", "image", "a", "red", "blue", "green", "ring", "square", "is", "at", "top", "left", "right")
UNK, MASK, EOS, PAD = range(len(WORDS), len(WORDS) + 4)
LENGTH = 10
PROMPT_LENGTH = 3


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0..13 are WORDS, then UNK, MASK, EOS, PAD."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*WORDS, *SPECIAL))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", eos_token="[EOS]", pad_token="[PAD]"
    )


TOKENIZER = word_tokenizer()


def ids(text: str, length: int | None = None) -> list[int]:
    """Ids of words; "_" is the mask, "." end of text, which also fills up to `length`."""
    row = [{"_": MASK, ".": EOS}[w] if w in "_." else WORDS.index(w) for w in text.split()]
    return row + [EOS] * ((length or 0) - len(row))


def spans(text: str, regions: dict[str, int]) -> list[dict[str, int]]:
    """Grounding of the first occurrence of each word."""
    return [{"start": text.index(w), "end": text.index(w) + len(w), "region": region} for w, region in regions.items()]


def sample(index: int, reference: str, **columns) -> dict:
    row = {
        "sample_id": f"s{index}",
        "image_sha": f"{index:064x}",
        "prompt": "describe the image",
        "reference": reference,
        "split": "train",
        "source": "test",
        "grounding": None,
    }
    return row | columns


def samples_of(*rows: dict) -> pl.DataFrame:
    return Samples.validate(pl.DataFrame(rows, schema=Samples.create_empty().schema))


def pair(index: int, of: dict, original: str, target: str, **columns) -> dict:
    """The first `original` of the sample's reference becomes `target`."""
    start = of["reference"].index(original)
    row = {
        "pair_id": f"{of['sample_id']}/p{index}",
        "sample_id": of["sample_id"],
        "kind": "attribute",
        "original_caption": of["reference"],
        "changed_caption": of["reference"].replace(original, target, 1),
        "solution_original": original,
        "solution_target": target,
        "start": start,
        "end": start + len(original),
    }
    return row | columns


def pairs_of(*rows: dict) -> pl.DataFrame:
    return HallucinationPairs.validate(pl.DataFrame(rows, schema=HallucinationPairs.create_empty().schema))


def world(count: int = 300) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples of 4 to 9 words, the even ones with two pairs each."""
    generator = np.random.default_rng(0)
    rows, changes = [], []
    for index in range(count):
        shape = ("ring", "square")[generator.integers(2)]
        text = f"a red {shape} is" + " at left" * int(generator.integers(0, 3)) + (" top" if index % 3 else "")
        rows.append(sample(index, text, grounding=spans(text, {"red": 3, shape: 5})))
        if index % 2 == 0:
            changes += [pair(0, rows[-1], "red", "blue"), pair(1, rows[-1], f"red {shape}", "green image")]
    return samples_of(*rows), pairs_of(*changes)


def matrix(frame: pl.DataFrame, column: str) -> np.ndarray:
    return np.array(frame[column].to_list())


def response(frame: pl.DataFrame, column: str) -> np.ndarray:
    """The response part of a list column of rows with one prompt."""
    return matrix(frame, column)[:, PROMPT_LENGTH:]

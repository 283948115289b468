"""A word-level tokenizer and small tables for the corruption tests."""

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_contracts import HallucinationPairs, Samples

SPECIAL = ("[UNK]", "[MASK]", "[EOS]", "[PAD]")
WORDS = ("describe", "the", "image", "a", "red", "blue", "green", "ring", "square", "is", "at", "top", "left", "right")


@pytest.fixture(scope="session")
def tokenizer():
    """Ids 0..13 are WORDS; unknown 14, mask 15, end of text 16, padding 17."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*WORDS, *SPECIAL))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", eos_token="[EOS]", pad_token="[PAD]"
    )


@pytest.fixture(scope="session")
def ids(tokenizer):
    """Ids of a text; EOS is written as it is, '_' is the mask."""
    special = {"_": tokenizer.mask_token_id, "EOS": tokenizer.eos_token_id}
    return lambda text: [special[w] if w in special else tokenizer.convert_tokens_to_ids(w) for w in text.split()]


def spans(text: str, words: dict[str, int]) -> list[dict[str, int]]:
    """Grounding of the first occurrence of each word."""
    return [{"start": text.index(w), "end": text.index(w) + len(w), "region": region} for w, region in words.items()]


def sample(index: int, reference: str, **columns) -> dict:
    return {
        "sample_id": f"s{index}",
        "image_sha": f"{index:064x}",
        "prompt": "describe the image",
        "reference": reference,
        "split": "train",
        "source": "test",
        "grounding": None,
    } | columns


def samples_of(rows: list[dict]) -> pl.DataFrame:
    return Samples.validate(pl.DataFrame(rows, schema=Samples.create_empty().schema))


def pair(index: int, of: dict, original: str, target: str, **columns) -> dict:
    """The first `original` of the sample's reference becomes `target`."""
    start = of["reference"].index(original)
    changed = of["reference"][:start] + target + of["reference"][start + len(original) :]
    return {
        "pair_id": f"{of['sample_id']}/p{index}",
        "sample_id": of["sample_id"],
        "kind": "attribute",
        "original_caption": of["reference"],
        "changed_caption": changed,
        "solution_original": original,
        "solution_target": target,
        "start": start,
        "end": start + len(original),
    } | columns


def pairs_of(rows: list[dict]) -> pl.DataFrame:
    return HallucinationPairs.validate(pl.DataFrame(rows, schema=HallucinationPairs.create_empty().schema))


def matrix(frame: pl.DataFrame, column: str) -> np.ndarray:
    return np.array(frame[column].to_list())


@pytest.fixture(scope="session")
def world():
    """300 samples of 4 to 9 words, the even ones with two pairs each."""
    generator = np.random.default_rng(0)
    rows, changes = [], []
    for index in range(300):
        shape = ("ring", "square")[generator.integers(2)]
        text = f"a red {shape} is" + " at left" * int(generator.integers(0, 3)) + (" top" if index % 3 else "")
        rows.append(sample(index, text, grounding=spans(text, {"red": 3, shape: 5})))
        if index % 2 == 0:
            changes += [pair(0, rows[-1], "red", "blue"), pair(1, rows[-1], f"red {shape}", "green image")]
    return samples_of(rows), pairs_of(changes)

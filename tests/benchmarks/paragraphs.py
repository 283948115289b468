"""Samples with paragraphs of real captions, their hallucination pairs and a large vocabulary, for the benchmarks."""

import json
from itertools import islice
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.corruption.caption_pairs import make_caption_pairs
from core.models.tokenizer import train_bpe_tokenizer
from core.seeds import rng
from data_contracts import HallucinationPairs, Samples

CAPTIONS = Path(__file__).parents[1] / "data/captions/coco.jsonl"
PROMPT = "Describe the image in detail."
_DIFFERENT = 1000
"""Different paragraphs; more samples are these again under other ids."""


def captions() -> list[str]:
    """All captions of the test data."""
    return [text for line in CAPTIONS.read_text().splitlines() for text in json.loads(line)["captions"]]


def large_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of the captions with as many ids as asked for, most of which no text has."""
    learned = train_bpe_tokenizer(captions(), 1000)
    content = json.loads(learned.backend_tokenizer.to_str())
    content["model"]["vocab"] |= {f"unused {index}": index for index in range(len(learned), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        split_special_tokens=True,
        **learned.special_tokens_map,
    )


def samples_and_pairs(count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`count` Samples rows of eight captions each, and HallucinationPairs, up to two a sample."""
    texts = captions()
    frame = pl.DataFrame(
        {
            "sample_id": [f"paragraph-{index}" for index in range(_DIFFERENT)],
            "image_sha": pl.Series([None] * _DIFFERENT, dtype=pl.String),
            "prompt": [PROMPT] * _DIFFERENT,
            "reference": [_paragraph(texts, index) for index in range(_DIFFERENT)],
        }
    )
    pairs = make_caption_pairs(frame, per_sample=2, seed=0).pairs
    samples, pairs = _again(frame, ["sample_id"], count), _again(pairs, ["sample_id", "pair_id"], count)
    schema = Samples.create_empty().schema
    samples = samples.with_columns(
        pl.lit(None if name != "split" else "train", dtype=dtype).alias(name)
        for name, dtype in schema.items()
        if name not in samples.columns
    )
    used = pairs.join(samples, on="sample_id", how="semi", maintain_order="left")
    return samples.select(schema.names()), used.select(HallucinationPairs.column_names())


def _paragraph(texts: list[str], index: int) -> str:
    picked = (texts[place] for place in rng("paragraph", index).permutation(len(texts)).tolist())
    return " ".join(f"{text.strip().rstrip('.')}." for text in islice(picked, 8))


def _again(frame: pl.DataFrame, ids: list[str], count: int) -> pl.DataFrame:
    """The first `count` samples' rows of the frame, repeated under other ids."""
    turns = [pl.lit(turn) for turn in range(-(-count // _DIFFERENT))]
    repeated = [frame.with_columns(pl.format("{}-{}", turn, name).alias(name) for name in ids) for turn in turns]
    kept = [f"{row // _DIFFERENT}-paragraph-{row % _DIFFERENT}" for row in range(count)]
    return pl.concat(repeated).filter(pl.col("sample_id").is_in(kept))

"""Hallucination pairs by rule: captions a second on one core, against looking for every phrase with its own regex.

python -m tests.benchmarks.bench_pairs --out tests/results/benchmarks/pairs.json

Makes one pair for each of `--rows` captions (real ones of tests/data/captions, five an image, each image many times
over) and keeps the fastest of `--repeats` passes, in processor time, all threads counted. The naive way finds the same
phrases of the lexicon in some of the captions with one precompiled regex a phrase; it makes no pair from them. Fails if
pairs come slower than 5,000 captions a second, or if both ways find different phrases.
"""

import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path

import polars as pl

from core.corruption.caption_pairs import make_caption_pairs
from core.corruption.caption_text import read_caption
from core.corruption.lexicon import load

CAPTIONS = Path(__file__).parents[1] / "data/captions/coco.jsonl"
TARGET = 5000.0


def caption_samples(count: int) -> pl.DataFrame:
    """Samples with `count` captions; a repeated image is another image."""
    images = [json.loads(line)["captions"] for line in CAPTIONS.read_text().splitlines()]
    texts = [text for captions in images for text in captions]
    sizes = [index for index, captions in enumerate(images) for _ in captions]
    return pl.DataFrame(
        {
            "sample_id": [f"s{row}" for row in range(count)],
            "image_sha": [f"{row // len(texts)}-{sizes[row % len(texts)]}" for row in range(count)],
            "reference": [texts[row % len(texts)] for row in range(count)],
        }
    )


def pairs_per_second(samples: pl.DataFrame, repeats: int) -> tuple[float, float, int]:
    """Captions a second of processor time, share of captions with a pair, and pairs."""
    best, pairs = float("inf"), 0
    for _ in range(repeats):
        started = time.process_time()
        pairs = make_caption_pairs(samples, per_sample=1, seed=0).pairs.height
        best = min(best, time.process_time() - started)
    return samples.height / best, pairs / samples.height, pairs


def matched(texts: list[str]) -> tuple[list[list[str]], float]:
    """The phrases of the lexicon in each text, and texts a second."""
    started = time.process_time()
    read = [read_caption(text) for text in texts]
    took = time.process_time() - started
    known = load().phrases
    return [[item for item in caption.items if item in known] for caption in read], len(texts) / took


def matched_naively(texts: list[str]) -> tuple[list[list[str]], float]:
    """`matched`, with one regex for each phrase: of overlapping ones the first, of those the longest."""
    patterns = {
        phrase: re.compile(r"(?<![\w'])" + re.escape(phrase).replace(r"\ ", r"\s+") + r"(?![\w'])")
        for phrase in load().phrases
    }
    started = time.process_time()
    found = []
    for text in texts:
        spans = [
            (match.start(), -match.end(), phrase)
            for phrase, pattern in patterns.items()
            for match in pattern.finditer(text.lower())
        ]
        kept, end = [], 0
        for start, negative_end, phrase in sorted(spans):
            if start >= end:
                kept.append(phrase)
                end = -negative_end
        found.append(kept)
    return found, len(texts) / (time.process_time() - started)


def main() -> int:
    """Run, write the JSON, and return 0 if the target is reached and both ways find the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    samples = caption_samples(args.rows)
    make_caption_pairs(samples.head(100), per_sample=1, seed=0)  # the lexicon is read once
    rate, covered, pairs = pairs_per_second(samples, args.repeats)
    texts = samples["reference"].unique(maintain_order=True).to_list()
    ours, naive = matched(texts), matched_naively(texts)
    row = {
        "rows": samples.height,
        "mean_chars": round(samples["reference"].str.len_chars().mean(), 1),
        "pairs": pairs,
        "captions_with_a_pair": round(covered, 3),
        "captions_per_second": round(rate),
        "target": TARGET,
        "matching_per_second": round(ours[1]),
        "naive_matching_per_second": round(naive[1]),
        "ratio": round(ours[1] / naive[1], 1),
        "captions_with_equal_phrases": sum(one == other for one, other in zip(ours[0], naive[0], strict=True)),
        "captions_compared": len(texts),
    }
    result = {
        "benchmark": "pairs",
        "command": "python -m tests.benchmarks.bench_pairs " + " ".join(sys.argv[1:]),
        "machine": {"device": platform.processor() or platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "polars": pl.__version__},
        "phrases": len(load().phrases),
        "rows": [row],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(row, indent=2) + "\n")
    return 0 if rate >= TARGET and row["captions_with_equal_phrases"] == len(texts) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The frozen part of an experiment: the world, its grammar and the metrics, as a digest of what they do.

A digest of behaviour, not of files: a comment may change, a caption, a pixel or a score may not.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from core.corruption.hallucination import make_pairs
from core.manifest import canonical_json
from core.metrics.bootstrap import NestedResamples, central, p_value
from core.metrics.facts import controls, measure, summarize
from core.metrics.overlap import overlap_f1
from core.seeds import rng
from core.worlds.scenes import synthesize

PANEL = 32
"""Scenes of each split that are looked at."""
_SEED = 0


def protocol_digest(declaration: object) -> str:
    """16 hex digits that change when a scene, a picture, a caption, a hallucination, a score or an interval changes.

    Args:
        declaration: what an experiment compares, as JSON values; it is part of its protocol.
    """
    return hashlib.sha256(canonical_json([declaration, list(_panel()), _bootstrapped()])).hexdigest()[:16]


def _panel() -> Iterator[Any]:
    for split in ("train", "dev", "test"):
        samples, images = synthesize(split=split, start=0, count=PANEL, captions=2, seed=_SEED)
        references = samples["reference"].to_list()
        yield [split, sorted(images), samples["sample_id"].to_list(), samples["prompt"].to_list(), references]
        pairs = make_pairs(samples, per_sample=4, seed=_SEED).pairs
        answers = [*references[1:], *references[:1]]
        texts = [*zip(references, answers, strict=True), *zip(references, references, strict=True)]
        texts += [(reference, _shuffled(reference)) for reference in references]
        texts += pairs.select("original_caption", "changed_caption").rows()
        texts += [(reference, text) for reference in references[:8] for text in _odd(reference)]
        measured = [measure(reference, text) | {"overlap_f1": overlap_f1(reference, text)} for reference, text in texts]
        yield [_rounded(one) for one in measured]
        yield _rounded(summarize(_evaluations(samples["sample_id"].to_list(), measured)))
        yield _rounded(controls(references, _SEED))


def _odd(text: str) -> list[str]:
    """Texts as models write them when they fail: empty, cut off, stuttering, said twice, half of it noise."""
    words = text.split()
    stuttering = [word for word in words for _ in range(2)]
    return ["", " ".join(words[: len(words) // 2]), " ".join(stuttering), f"{text} {text}", f"{text} red red of of . a"]


def _evaluations(sample_ids: list[str], measured: list[dict[str, Any]]) -> pl.DataFrame:
    """What `summarize` averages."""
    return pl.DataFrame(measured).with_columns(
        sample_id=pl.Series([sample_ids[i % len(sample_ids)] for i in range(len(measured))]), nfe=pl.lit(6)
    )


def _bootstrapped() -> list[float]:
    """What the intervals over seeds and scenes make of made-up scores."""
    scores_KS = np.array([[(7 * seed + 3 * scene) % 11 for scene in range(20)] for seed in range(3)], dtype=np.float64)
    means_R = NestedResamples.draw(*scores_KS.shape).means(scores_KS)
    return [*central(means_R), p_value(means_R - 5.0)]


def _rounded(values: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _shuffled(text: str) -> str:
    """The same words in another order."""
    words = text.split()
    return " ".join(words[i] for i in rng(_SEED, text).permutation(len(words)))

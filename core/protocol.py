"""The frozen part of an experiment: the world, its grammar and the metrics, as a digest of what they do.

A digest of behaviour, not of files: a comment may change, a caption, a pixel or a score may not.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from core.corruption.hallucination import make_pairs
from core.manifest import canonical_json
from core.metrics.facts import controls, measure
from core.seeds import rng
from core.worlds.scenes import synthesize

PANEL = 32
"""Scenes of each split that are looked at."""
_SEED = 0


def protocol_digest(declaration: object) -> str:
    """16 hex digits that change when a scene, a picture, a caption, a hallucination or a score of one changes.

    Args:
        declaration: what an experiment compares, as JSON values; it is part of its protocol.
    """
    return hashlib.sha256(canonical_json([declaration, list(_panel())])).hexdigest()[:16]


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
        yield [_rounded(measure(reference, text)) for reference, text in texts]
        yield _rounded(controls(references, _SEED))


def _rounded(values: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _shuffled(text: str) -> str:
    """The same words in another order."""
    words = text.split()
    return " ".join(words[i] for i in rng(_SEED, text).permutation(len(words)))

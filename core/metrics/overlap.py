"""Metrics for any text, with no knowledge of its world."""

import re
from collections import Counter

_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def overlap_f1(reference: str, text: str) -> float:
    """F1 of the two bags of words, in [0, 1]. E.g. ("a red ring", "a red red box") -> 2 * 2 / (3 + 4) = .571.

    Case and punctuation do not count; two texts without a word agree (1.0).
    """
    wanted, found = Counter(_words(reference)), Counter(_words(text))
    total = wanted.total() + found.total()
    return 2 * (wanted & found).total() / total if total else 1.0

"""The true caption of a scene that is nearest to a draft, word by word.

A dynamic programme over (words written, clauses said) chooses templates, their order and their places so that as few
words as possible change. Every object and the overview must be said; one relation may be, where that is cheaper.

Shapes: U sets of admissible words, V words (index V: no word of the vocabulary), K patterns (a clause of this scene in
one template), J words of the longest template, G clauses to say, N template lengths of a clause, P positions 0..limit,
M subsets of the clauses, as bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from core.seeds import stream_key, uniforms
from core.worlds.scenes_grammar import (
    MEANINGS,
    OBJECT_TEMPLATES,
    OVERVIEW_TEMPLATES,
    RELATION_TEMPLATES,
    SECOND,
    TEMPLATES,
    VOCABULARY,
    Template,
    choices,
    object_meanings,
    relation_meanings,
)
from core.worlds.scenes_graph import Scene, relations

Words = tuple[str, ...]
"""The words that a position admits."""

_RELATION = 0.3
"""Cost of a relation that is said, in words: below one, so that it only decides between equals."""
_OTHER_LENGTH = 100.0
"""Cost of another number of words than the draft's: more than any edit of equal length."""
_JITTER = 1e-3
"""Ties between templates are broken at random, keyed by the draft."""
_LONGEST = max(len(template.slots) for template in TEMPLATES)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """All clauses that may be said of a scene: objects in order, the overview, then one of the relations."""

    words_K: tuple[tuple[Words, ...], ...]
    sets_KJ: NDArray[np.intp]
    """Index of each position's set of words, U past the pattern's end."""
    length_K: NDArray[np.intp]
    groups: int
    """G: objects + overview + relation."""
    members: dict[tuple[int, int], NDArray[np.intp]]
    """(clause, length) -> its patterns."""


@dataclass(frozen=True, slots=True)
class _Level:
    """The subsets of k clauses: each is reached from k smaller subsets by saying the clause that those lack."""

    mask_M: NDArray[np.intp]
    previous_MK: NDArray[np.intp]
    group_MK: NDArray[np.intp]


def nearest_caption(scene: Scene, draft: Sequence[str], limit: int) -> list[str]:
    """The true and complete caption with the fewest word edits to `draft`, of as many words wherever possible.

    Where no caption has as many words it grows or shrinks at its end, to at most `limit` words. Words of the draft
    that are right are kept; new synonyms depend on the draft alone.

    Raises:
        ValueError: if no caption of the scene has at most `limit` words.
    """
    patterns = _patterns(scene)
    u = uniforms(np.array([stream_key("nearest caption", *draft)], np.uint64), len(patterns.words_K) + _LONGEST * 6)[0]
    jitter_K, synonym = u[: len(patterns.words_K)], iter(u[len(patterns.words_K) :].tolist())
    limit = min(limit, _LONGEST * patterns.groups)
    cost_KP = _costs(patterns, draft, limit) + _JITTER * jitter_K[:, None]
    caption: list[str] = []
    for k in _cheapest(patterns, cost_KP, len(draft), limit):
        for options in patterns.words_K[k]:
            u_word = next(synonym)
            word = draft[len(caption)] if len(caption) < len(draft) else ""
            caption.append(word if word in options else options[int(u_word * len(options))])
    return caption


def _costs(patterns: _Patterns, draft: Sequence[str], limit: int) -> NDArray[np.float64]:
    """Words that change if a pattern starts at a position, (K, P); words past the draft's end all count."""
    index, admits_UV = _admits()
    unknown = len(VOCABULARY)
    words_W = np.full(limit + 1 + _LONGEST, unknown)
    known = [index.get(word, unknown) for word in draft[: limit + 1]]
    words_W[: len(known)] = known
    admits_UW = admits_UV[:, words_W]
    at_JP = np.arange(_LONGEST)[:, None] + np.arange(limit + 1)[None, :]
    kept_KP: NDArray[np.intp] = admits_UW[patterns.sets_KJ[:, :, None], at_JP[None]].sum(1)
    relation_K = np.zeros(len(patterns.length_K))
    for (group, _), members in patterns.members.items():
        relation_K[members] = _RELATION * (group == patterns.groups - 1)
    cost_KP: NDArray[np.float64] = (patterns.length_K + relation_K)[:, None] - kept_KP
    return cost_KP


def _cheapest(patterns: _Patterns, cost_KP: NDArray[np.float64], words: int, limit: int) -> list[int]:
    """The patterns of the cheapest caption, in order."""
    lengths = sorted({length for _, length in patterns.members})
    step_GNP = np.full((patterns.groups, len(lengths), limit + 1), np.inf)
    for (group, length), members in patterns.members.items():
        reach = max(limit + 1 - length, 0)
        step_GNP[group, lengths.index(length), limit + 1 - reach :] = cost_KP[members, :reach].min(0)
    before_NP = np.arange(limit + 1)[None, :] - np.array(lengths)[:, None]
    before_NP[before_NP < 0] = limit + 1
    best_MP = np.full((1 << patterns.groups, limit + 2), np.inf)
    best_MP[0, 0] = 0.0
    choice_MP = np.zeros((1 << patterns.groups, limit + 1), np.intp)
    for level in _levels(patterns.groups):
        cost = best_MP[level.previous_MK[:, :, None, None], before_NP] + step_GNP[level.group_MK]
        flat = cost.reshape(len(level.mask_M), -1, limit + 1)
        choice_MP[level.mask_M] = flat.argmin(1)
        best_MP[level.mask_M, :-1] = flat.min(1)
    mask, end = _best_end(best_MP[:, :-1], patterns.groups, words)
    chosen: list[int] = []
    while mask:
        said = [group for group in range(patterns.groups) if mask >> group & 1]
        which, n = divmod(int(choice_MP[mask, end]), len(lengths))
        end -= lengths[n]
        members = patterns.members[said[which], lengths[n]]
        chosen.append(int(members[cost_KP[members, end].argmin()]))
        mask ^= 1 << said[which]
    return chosen[::-1]


def _best_end(best_MP: NDArray[np.float64], groups: int, words: int) -> tuple[int, int]:
    """(clauses said, words written) of the cheapest complete caption: the relation alone may be missing."""
    complete = np.array([(1 << groups) - 1, (1 << (groups - 1)) - 1])
    ends_P = np.arange(best_MP.shape[1])
    cut_P = np.maximum(words - ends_P, 0)
    total_2P = best_MP[complete] + cut_P + _OTHER_LENGTH * (ends_P != words)
    row, end = divmod(int(total_2P.argmin()), best_MP.shape[1])
    if not np.isfinite(total_2P[row, end]):
        raise ValueError("no caption of the scene is as short as the limit")
    return int(complete[row]), end


@lru_cache(maxsize=4096)
def _patterns(scene: Scene) -> _Patterns:
    objects, overview = len(scene.objects), len(scene.objects)
    clauses: list[tuple[int, Template, dict[str, str]]] = [
        (group, template, object_meanings(thing))
        for group, thing in enumerate(scene.objects)
        for template in OBJECT_TEMPLATES
    ]
    facts = {"COUNT": str(objects), "BACKGROUND": scene.background}
    clauses += [(overview, template, facts) for template in OVERVIEW_TEMPLATES]
    for relation in relations(scene):
        stated = relation_meanings(relation)
        clauses += [(overview + 1, t, stated) for t in RELATION_TEMPLATES if not stated.keys() - set(t.slots)]
    ids = _set_ids()
    sets_KJ = np.full((len(clauses), _LONGEST), len(ids), np.intp)
    members: dict[tuple[int, int], list[int]] = {}
    words = []
    for k, (group, template, stated) in enumerate(clauses):
        slots = [(SECOND.get(slot, slot), stated.get(slot)) for slot in template.slots]
        sets_KJ[k, : len(slots)] = [ids[slot] for slot in slots]
        words.append(tuple(choices(*slot) for slot in slots))
        members.setdefault((group, len(slots)), []).append(k)
    return _Patterns(
        words_K=tuple(words),
        sets_KJ=sets_KJ,
        length_K=np.array([len(options) for options in words]),
        groups=objects + 2,
        members={key: np.array(indices) for key, indices in members.items()},
    )


@cache
def _set_ids() -> dict[tuple[str, str | None], int]:
    """(slot, meaning) -> index of its set of admissible words; the meaning of free slots and literals is None."""
    plain = {SECOND.get(slot, slot) for template in TEMPLATES for slot in template.slots}
    keys: list[tuple[str, str | None]] = [(slot, meaning) for slot, table in MEANINGS.items() for meaning in table]
    keys += [(slot, None) for slot in sorted(plain - MEANINGS.keys())]
    return {key: i for i, key in enumerate(keys)}


@cache
def _admits() -> tuple[dict[str, int], NDArray[np.bool_]]:
    """Word -> index, and whether a set admits a word, (U + 1, V + 1); the last set and the last word admit nothing."""
    index = {word: i for i, word in enumerate(VOCABULARY)}
    ids = _set_ids()
    admits_UV = np.zeros((len(ids) + 1, len(VOCABULARY) + 1), np.bool_)
    for key, i in ids.items():
        admits_UV[i, [index[word] for word in choices(*key)]] = True
    return index, admits_UV


@cache
def _levels(groups: int) -> tuple[_Level, ...]:
    """The non-empty subsets by size, so that each comes after those it is reached from."""
    levels = []
    for size in range(1, groups + 1):
        group_MK = np.array(list(combinations(range(groups), size)))
        mask_M = (1 << group_MK).sum(1)
        levels.append(_Level(mask_M, mask_M[:, None] ^ (1 << group_MK), group_MK))
    return tuple(levels)

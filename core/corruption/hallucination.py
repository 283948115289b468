"""ViCrit-style pairs for scene captions: one word changed so that exactly one stated fact becomes false.

    "... a red ring sits in the top left corner ."  ->  place  ->  "... a red ring sits in the bottom left corner ."

The number of words never changes, a word is never replaced by its synonym, and the changed clause is read again by the
parser and must be false in the scene.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl

from core.corruption.rows import reject_frame
from core.errors import ConfigError, RowError
from core.seeds import rng as stream
from core.worlds.scenes import scene_of
from core.worlds.scenes_grammar import (
    MEANING_OF,
    RELATION_SLOTS,
    SECOND,
    Clause,
    Invalid,
    ObjectClause,
    OverviewClause,
    choices,
    parse,
    read_clause,
)
from core.worlds.scenes_graph import Relation, Scene, relations
from data_contracts import HallucinationPairs

PairKind = Literal["object", "attribute", "count", "place", "relation"]
KINDS: tuple[PairKind, ...] = get_args(PairKind)

_KIND_OF_SLOT: dict[str, PairKind] = {
    "SHAPE": "object",
    "COLOUR": "attribute",
    "SIZE": "attribute",
    "BACKGROUND": "attribute",
    "COUNT": "count",
    "ROW": "place",
    "COLUMN": "place",
    **dict.fromkeys(RELATION_SLOTS, "relation"),
}
_RELATION_WEIGHT = 8.0
"""Fewer than a third of all captions state a relation: preferring it there makes the kinds come out even."""
_TRIES = 12


@dataclass(frozen=True, slots=True)
class _Place:
    """A word that can be made wrong: its index in the caption, its slot and its clause."""

    index: int
    slot: str
    clause: Clause


@dataclass(frozen=True, kw_only=True)
class MadePairs:
    """`pairs` (HallucinationPairs), and one row of `rejects` (row_id, outcome, reason, detail) a sample without any."""

    pairs: pl.DataFrame
    rejects: pl.DataFrame


def make_pairs(samples: pl.DataFrame, *, per_sample: int, seed: int, kinds: Sequence[PairKind] = KINDS) -> MadePairs:
    """Up to `per_sample` different pairs of each of the Samples rows.

    Pairs of a sample go through `kinds` in random order, so that they are spread evenly. Reasons of rejects:
    `no_grammar` (the reference describes no scene), `no_such_fact` (it states no fact of these kinds).

    Raises:
        ConfigError: if `kinds` is empty or names an unknown kind.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ConfigError(f"pair kinds must be some of {', '.join(KINDS)}; got {list(kinds)}")
    rows: list[dict[str, str | int]] = []
    rejected: list[tuple[str, RowError]] = []
    for sample_id, reference in samples.select("sample_id", "reference").iter_rows():
        try:
            rows.extend(_pairs(sample_id, reference, per_sample, stream(seed, "pairs", sample_id), kinds))
        except RowError as error:
            rejected.append((sample_id, error))
    return MadePairs(
        pairs=pl.DataFrame(rows, schema=HallucinationPairs.create_empty().schema),
        rejects=reject_frame(
            [sample_id for sample_id, _ in rejected],
            [error.reason for _, error in rejected],
            [error.detail for _, error in rejected],
        ),
    )


def _pairs(
    sample_id: str, reference: str, count: int, rng: np.random.Generator, kinds: Sequence[PairKind]
) -> list[dict[str, str | int]]:
    scene = scene_of(reference)
    if scene is None:
        raise RowError("no_grammar", "only captions of the scene world can be changed by rule")
    places: dict[PairKind, list[_Place]] = {}
    for place in _places(reference):
        places.setdefault(_KIND_OF_SLOT[SECOND.get(place.slot, place.slot)], []).append(place)
    order = _order([kind for kind in kinds if kind in places], rng)
    if not order:
        raise RowError("no_such_fact", f"the caption states none of: {', '.join(kinds)}")
    words = reference.split()
    true = frozenset(relations(scene))
    changes: dict[tuple[int, str], PairKind] = {}
    for k in range(count):
        kind = order[k % len(order)]
        change = _change(places[kind], words, scene, true, changes.keys(), rng)
        if change is not None:
            changes[change] = kind
    return [
        _row(f"{sample_id}-p{k}", sample_id, kind, words, *change) for k, (change, kind) in enumerate(changes.items())
    ]


def _places(reference: str) -> Iterator[_Place]:
    for clause in parse(reference):
        if isinstance(clause, Invalid):
            continue
        for offset, slot in enumerate(clause.template.slots):
            if SECOND.get(slot, slot) in _KIND_OF_SLOT:
                yield _Place(clause.start + offset, slot, clause)


def _order(kinds: Sequence[PairKind], rng: np.random.Generator) -> list[PairKind]:
    """A random order; heavier kinds tend to come first (Efraimidis and Spirakis 2006)."""
    keys = {kind: rng.random() ** (1 / (_RELATION_WEIGHT if kind == "relation" else 1.0)) for kind in kinds}
    return sorted(keys, key=lambda kind: keys[kind], reverse=True)


def _change(
    places: Sequence[_Place],
    words: Sequence[str],
    scene: Scene,
    true: frozenset[Relation],
    taken: Collection[tuple[int, str]],
    rng: np.random.Generator,
) -> tuple[int, str] | None:
    """(word index, new word) of a change that is not `taken` and makes its clause false; None if none turns up."""
    for _ in range(_TRIES):
        place = places[int(rng.random() * len(places))]
        meaning_of = MEANING_OF[SECOND.get(place.slot, place.slot)]
        options = [word for word in choices(place.slot) if meaning_of[word] != meaning_of[words[place.index]]]
        word = options[int(rng.random() * len(options))]
        if (place.index, word) not in taken and not _holds(_reworded(place, words, word), scene, true):
            return place.index, word
    return None


def _reworded(place: _Place, words: Sequence[str], word: str) -> Clause:
    start, template = place.clause.start, place.clause.template
    changed = list(words[start : start + len(template.slots)])
    changed[place.index - start] = word
    return read_clause(template, tuple(changed), start)


def _holds(clause: Clause, scene: Scene, true: frozenset[Relation]) -> bool:
    """Whether everything that a clause states is so."""
    if isinstance(clause, ObjectClause):
        return clause.object in scene.objects
    if isinstance(clause, OverviewClause):
        return clause.count == len(scene.objects) and clause.background == scene.background
    return clause.relation in true


def _row(pair_id: str, sample_id: str, kind: PairKind, words: list[str], index: int, word: str) -> dict[str, str | int]:
    start = sum(len(before) + 1 for before in words[:index])
    return {
        "pair_id": pair_id,
        "sample_id": sample_id,
        "kind": kind,
        "original_caption": " ".join(words),
        "changed_caption": " ".join([*words[:index], word, *words[index + 1 :]]),
        "solution_original": words[index],
        "solution_target": word,
        "start": start,
        "end": start + len(words[index]),
    }

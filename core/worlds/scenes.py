"""The world `scenes`: procedural pictures with multi-sentence captions whose every fact can be checked.

    draw("train", 17, seed=0)  ->  Scene(background="teal", objects=(small red ring at row 0, column 2, ...))
    caption(scene, rng).text   ->  "two items can be seen against a teal canvas . near the top right rests a red ..."
    scene_of(that text)        ->  the same Scene

Each caption states each object once, has one overview clause and fills up with relation clauses. The reference alone
determines the scene, which is never stored elsewhere.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import numpy as np
import polars as pl

from core.seeds import rng as stream
from core.worlds.scenes_grammar import (
    OBJECT_TEMPLATES,
    OVERVIEW_TEMPLATES,
    PROMPT,
    RELATION_TEMPLATES,
    VOCABULARY,
    Invalid,
    ObjectClause,
    OverviewClause,
    RelationClause,
    Template,
    choices,
    object_meanings,
    parse,
    relation_meanings,
)
from core.worlds.scenes_graph import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    GRID,
    OBJECT_COUNTS,
    SHAPES,
    SIZES,
    Identity,
    Relation,
    Scene,
    SceneObject,
    Split,
    canonical,
    relations,
    split_of,
)
from core.worlds.scenes_render import encode_png, render
from data_contracts import Samples

__all__ = [
    "PROMPT",
    "RESPONSE_LENGTH",
    "VOCABULARY",
    "Caption",
    "Scene",
    "SceneObject",
    "caption",
    "draw",
    "parse",
    "render",
    "scene_of",
    "split_of",
    "synthesize",
]

RESPONSE_LENGTH = 48
MAX_WORDS = RESPONSE_LENGTH - 1
"""Captions leave room for one end-of-text token."""
SOURCE = "scenes/1"
_THREE_OBJECTS = 1 / 3
_OVERVIEW_FIRST = 0.7
_TRIES = 64


class Span(TypedDict):
    """A word that speaks of one object: chars [start, end) of the caption, and the object's cell."""

    start: int
    end: int
    region: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A true caption; `grounding` has a span for each colour, shape and size word."""

    text: str
    grounding: list[Span]


@dataclass(frozen=True, slots=True)
class _Planned:
    template: Template
    meanings: dict[str, str]
    cells: dict[str, int]
    """Slot -> cell of the object that the slot's word speaks of."""


def draw(split: Split, index: int, seed: int) -> Scene:
    """Scene number `index` of a split: the same whatever else is drawn, never a scene of another split."""
    random = stream(seed, "scene", split, index)
    while True:
        scene = _scene(iter(random.random(64).tolist()))
        if split_of(scene) == split:
            return scene


def _scene(uniforms: Iterator[float]) -> Scene:
    count = OBJECT_COUNTS[next(uniforms) < _THREE_OBJECTS]
    free_cells = list(range(CELLS))
    free_identities = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    objects = []
    for _ in range(count):
        cell = free_cells.pop(int(next(uniforms) * len(free_cells)))
        colour, shape = free_identities.pop(int(next(uniforms) * len(free_identities)))
        size = SIZES[int(next(uniforms) * len(SIZES))]
        objects.append(SceneObject(colour=colour, shape=shape, size=size, row=cell // GRID, column=cell % GRID))
    background = BACKGROUNDS[int(next(uniforms) * len(BACKGROUNDS))]
    return Scene(background=background, objects=tuple(sorted(objects, key=lambda thing: thing.cell)))


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A true and complete caption of at most `MAX_WORDS` words."""
    planned = _fitting(scene, rng)
    uniforms = iter(rng.random(2 * RESPONSE_LENGTH).tolist())
    words: list[str] = []
    grounding: list[Span] = []
    offset = 0
    for clause in planned:
        for slot in clause.template.slots:
            options = choices(slot, clause.meanings.get(slot))
            word = options[int(next(uniforms) * len(options))] if len(options) > 1 else options[0]
            if slot in clause.cells:
                grounding.append({"start": offset, "end": offset + len(word), "region": clause.cells[slot]})
            words.append(word)
            offset += len(word) + 1
    return Caption(" ".join(words), grounding)


def _fitting(scene: Scene, rng: np.random.Generator) -> list[_Planned]:
    """Clauses in order: the objects and the overview in templates that fit, then relations while there is room."""
    wordings = _fitting_templates(len(scene.objects), rng)
    overview = _Planned(wordings[-1], {"COUNT": str(len(scene.objects)), "BACKGROUND": scene.background}, {})
    order = rng.permutation(len(scene.objects)).tolist()
    clauses = [_object_clause(t, scene.objects[i]) for t, i in zip(wordings[:-1], order, strict=True)]
    room = MAX_WORDS - sum(len(template.slots) for template in wordings)
    said: set[frozenset[Identity]] = set()
    known = list(relations(scene)) if room >= min(len(template.slots) for template in RELATION_TEMPLATES) else []
    for i in rng.permutation(len(known)).tolist():
        clause = _relation_clause(scene, known[i], rng)
        pair = frozenset(known[i][1:])
        if pair not in said and len(clause.template.slots) <= room:
            clauses.insert(int(rng.integers(len(clauses) + 1)), clause)
            room -= len(clause.template.slots)
            said.add(pair)
    return [overview, *clauses] if rng.random() < _OVERVIEW_FIRST else [*clauses, overview]


def _fitting_templates(objects: int, rng: np.random.Generator) -> list[Template]:
    """A template an object and one for the overview, uniform over the choices that leave no word over the limit."""
    while True:
        for u in rng.random((_TRIES, objects + 1)).tolist():
            picked = [OBJECT_TEMPLATES[int(x * len(OBJECT_TEMPLATES))] for x in u[:-1]]
            picked.append(OVERVIEW_TEMPLATES[int(u[-1] * len(OVERVIEW_TEMPLATES))])
            if sum(len(template.slots) for template in picked) <= MAX_WORDS:
                return picked


def _object_clause(template: Template, thing: SceneObject) -> _Planned:
    return _Planned(template, object_meanings(thing), dict.fromkeys(("COLOUR", "SHAPE", "SIZE"), thing.cell))


def _relation_clause(scene: Scene, relation: Relation, rng: np.random.Generator) -> _Planned:
    meanings = relation_meanings(relation)
    fitting = [t for t in RELATION_TEMPLATES if not set(meanings) - set(t.slots)]
    cells = {thing.identity: thing.cell for thing in scene.objects}
    first, second = cells[relation[1]], cells[relation[2]]
    return _Planned(
        fitting[int(rng.integers(len(fitting)))],
        meanings,
        {"COLOUR": first, "SHAPE": first, "COLOUR2": second, "SHAPE2": second},
    )


@lru_cache(maxsize=1 << 15)
def scene_of(text: str) -> Scene | None:
    """The scene that a true and complete caption describes, exactly; None for any other text.

    Complete and true: every clause parses, one overview, each object once, no relation that is false or said twice.
    """
    if not text.endswith(" ."):  # as every clause does: a quick answer for other texts
        return None
    clauses = parse(text)
    if " ".join(text.split()) != text or any(isinstance(clause, Invalid) for clause in clauses):
        return None
    overviews = [clause for clause in clauses if isinstance(clause, OverviewClause)]
    objects = [clause.object for clause in clauses if isinstance(clause, ObjectClause)]
    if len(overviews) != 1 or overviews[0].count != len(objects):
        return None
    try:
        scene = Scene(background=overviews[0].background, objects=tuple(sorted(objects, key=lambda thing: thing.cell)))
    except ValueError:
        return None
    stated = Counter(canonical(clause.relation) for clause in clauses if isinstance(clause, RelationClause))
    true = {canonical(relation) for relation in relations(scene)}
    return scene if set(stated) <= true and all(times == 1 for times in stated.values()) else None


def synthesize(
    *, split: Split, start: int, count: int, captions: int, seed: int
) -> tuple[pl.DataFrame, dict[str, bytes]]:
    """Samples of the scenes [start, start + count) of a split, `captions` a scene, and their images as sha256 -> PNG.

    Sample ids read "train-000017-0": split, scene, caption.
    """
    rows: list[dict[str, object]] = []
    images: dict[str, bytes] = {}
    for index in range(start, start + count):
        scene = draw(split, index, seed)
        png = encode_png(render(scene, stream(seed, "pixels", split, index)))
        sha = hashlib.sha256(png).hexdigest()
        images[sha] = png
        rows.extend(_sample_rows(scene, sha, split, index, captions, seed))
    return pl.DataFrame(rows, schema=Samples.create_empty().schema), images


def _sample_rows(
    scene: Scene, sha: str, split: Split, index: int, captions: int, seed: int
) -> Iterator[dict[str, object]]:
    for k in range(captions):
        written = caption(scene, stream(seed, "caption", split, index, k))
        yield {
            "sample_id": f"{split}-{index:06d}-{k}",
            "image_sha": sha,
            "prompt": PROMPT,
            "reference": written.text,
            "split": split,
            "source": SOURCE,
            "grounding": written.grounding,
        }

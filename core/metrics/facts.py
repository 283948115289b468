"""Exact metrics of answers whose reference describes a scene.

What counts as a fact. An object clause states two: that the object (its colour and shape) is at its place, and that,
being there, it has its size. The overview states two: count and background. A relation clause states one, a relation
and its inverse being the same. A fact is true once; said again, in whatever words, it is stated but earns nothing.
No fact counts without an object: count and background, which are right by luck in more than half and a quarter of all
scenes, count only beside at least one object of the scene at its place, and a relation's two objects must be in the
scene. Hence a caption of another scene scores near 0.

    fact_precision    true / stated
    strict_precision  true / (stated + invalid clauses)
    fact_recall       true, relations left out / (2 per object + 2)
    score             100 x F1(strict_precision, fact_recall); 100 exactly for true and complete captions
    place_accuracy    stated objects at their place / stated objects that are in the scene; chance 1/9
    binding_error     stated objects that take the colour of one object and the shape of another / stated objects
    validity          words of clauses that parse / words
    repeat_rate       words that repeat the word before or belong to a clause said before / words
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import InputError
from core.metrics.bootstrap import clusters, ratio_interval, resample
from core.seeds import rng
from core.worlds.scenes import scene_of
from core.worlds.scenes_grammar import Invalid, ObjectClause, OverviewClause, RelationClause, parse
from core.worlds.scenes_graph import CELLS, Identity, Relation, Scene, SceneObject, canonical, relations

PLACE_CHANCE = 1 / CELLS
"""place_accuracy of a cell picked at random."""

_MEANS = (
    "score",
    "strict_precision",
    "fact_precision",
    "fact_recall",
    "fact_f1",
    "validity",
    "repeat_rate",
    "overlap_f1",
)
_SCENE_METRICS = (
    "score",
    "strict_precision",
    "fact_precision",
    "fact_recall",
    "fact_f1",
    "stated_objects",
    "placed_objects",
    "bound_objects",
    "all_objects",
    "validity",
)
_SCENE_SAMPLE = re.compile(r"((?:train|dev|test)-\d+)-\d+")


@dataclass(slots=True)
class _Tally:
    """What a caption says of one scene, counted clause by clause."""

    scene: Scene
    true_facts: set[tuple[object, ...]] = field(default_factory=set)
    overview_facts: set[str] = field(default_factory=set)
    true_relations: set[Relation] = field(default_factory=set)
    stated: int = 0
    invalid: int = 0
    objects: int = 0
    in_scene: int = 0
    placed: int = 0
    misbound: int = 0

    def add_object(self, stated: SceneObject) -> None:
        """An object clause: two facts, bound to the object of that colour and shape."""
        self.stated += 2
        self.objects += 1
        known: dict[Identity, SceneObject] = {thing.identity: thing for thing in self.scene.objects}
        actual = known.get(stated.identity)
        if actual is None:
            colours, shapes = {colour for colour, _ in known}, {shape for _, shape in known}
            self.misbound += stated.colour in colours and stated.shape in shapes
            return
        self.in_scene += 1
        if stated.cell == actual.cell:
            self.placed += 1
            self.true_facts.add(("place", actual.identity))
            if stated.size == actual.size:
                self.true_facts.add(("size", actual.identity))

    def add_overview(self, count: int, background: str) -> None:
        """An overview clause: two facts, of the whole picture."""
        self.stated += 2
        if count == len(self.scene.objects):
            self.overview_facts.add("count")
        if background == self.scene.background:
            self.overview_facts.add("background")

    def add_relation(self, stated: Relation, true: set[Relation]) -> None:
        """A relation clause: one fact."""
        self.stated += 1
        if canonical(stated) in true:
            self.true_relations.add(canonical(stated))

    def recalled(self) -> int:
        """True facts that recall asks for."""
        return len(self.true_facts) + len(self.overview_facts) * bool(self.true_facts)


def measure(reference: str, text: str) -> dict[str, float | int | None]:
    """The metric columns of an Evaluations row, `overlap_f1` excepted; null where `reference` describes no scene."""
    scene = scene_of(reference)
    repeats = repeat_rate(text)
    if scene is None:
        return {**dict.fromkeys(_SCENE_METRICS), "repeat_rate": repeats}
    tally = _Tally(scene)
    true = {canonical(relation) for relation in relations(scene)}
    words = len(text.split())
    parsed = words
    for clause in parse(text):
        match clause:
            case ObjectClause():
                tally.add_object(clause.object)
            case OverviewClause():
                tally.add_overview(clause.count, clause.background)
            case RelationClause():
                tally.add_relation(clause.relation, true)
            case Invalid():
                tally.invalid += 1
                parsed -= len(clause.words)
    recalled = tally.recalled()
    correct = recalled + len(tally.true_relations)
    recall = recalled / (2 + 2 * len(scene.objects))
    strict = _share(correct, tally.stated + tally.invalid)
    lenient = _share(correct, tally.stated)
    return {
        "score": 100 * _f1(strict, recall),
        "strict_precision": strict,
        "fact_precision": lenient,
        "fact_recall": recall,
        "fact_f1": _f1(lenient, recall),
        "stated_objects": tally.in_scene,
        "placed_objects": tally.placed,
        "bound_objects": tally.objects - tally.misbound,
        "all_objects": tally.objects,
        "validity": _share(parsed, words),
        "repeat_rate": repeats,
    }


def repeat_rate(text: str) -> float:
    """The share of words that repeat the word before or belong to a clause said before, of any text."""
    words = text.split()
    repeated = 0
    said: set[tuple[str, ...]] = set()
    clause: list[str] = []
    stutters = 0
    for i, word in enumerate(words):
        clause.append(word)
        stutters += i > 0 and word == words[i - 1]
        if word.endswith(".") or i == len(words) - 1:
            repeated += len(clause) if tuple(clause) in said else stutters
            said.add(tuple(clause))
            clause, stutters = [], 0
    return _share(repeated, len(words))


def summarize(evaluations: pl.DataFrame, *, seed: int = 0) -> dict[str, float | int | None]:
    """Means over the Evaluations rows of one setting, each with the bounds of its interval over scenes.

    Keys: `samples`, `scenes`, `nfe` (mean), `place_chance`, and for each metric `metric`, `metric_low`, `metric_high`,
    all three null where no row has it.

    Raises:
        InputError: if there are no rows.
    """
    if evaluations.is_empty():
        raise InputError("there is nothing to summarize: no evaluated rows")
    scene_N = clusters([scene_id(sample) for sample in evaluations["sample_id"]])
    times_RS = resample(int(scene_N.max()) + 1, seed)
    summary: dict[str, float | int | None] = {
        "samples": len(evaluations),
        "scenes": times_RS.shape[1],
        "nfe": float(evaluations["nfe"].to_numpy().mean()),
        "place_chance": PLACE_CHANCE,
    }
    ratios: dict[str, tuple[pl.Expr, pl.Expr]] = {name: (pl.col(name), pl.col(name).is_not_null()) for name in _MEANS}
    ratios["place_accuracy"] = pl.col("placed_objects"), pl.col("stated_objects")
    ratios["binding_error"] = pl.col("all_objects") - pl.col("bound_objects"), pl.col("all_objects")
    for name, (numerator, denominator) in ratios.items():
        above_S = _by_scene(evaluations, numerator, scene_N)
        below_S = _by_scene(evaluations, denominator, scene_N)
        known = below_S.sum() > 0
        low, high = ratio_interval(above_S, below_S, times_RS) if known else (None, None)
        summary |= {
            name: float(above_S.sum() / below_S.sum()) if known else None,
            f"{name}_low": low,
            f"{name}_high": high,
        }
    return summary


def _by_scene(rows: pl.DataFrame, value: pl.Expr, scene_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of a column over the rows of each scene, nulls being 0, (S,)."""
    values_N = rows.select(value.cast(pl.Float64).fill_null(0.0)).to_series().to_numpy()
    return np.bincount(scene_N, values_N).astype(np.float64)


def scene_id(sample_id: str) -> str:
    """What samples of one picture share: "test-000017-1" -> "test-000017"; other ids stand for themselves."""
    match = _SCENE_SAMPLE.fullmatch(sample_id)
    return match[1] if match else sample_id


def controls(references: Sequence[str], seed: int) -> dict[str, float]:
    """Mean `score` of three answers that need no model: empty, another scene's reference, and the reference itself.

    References that describe no scene are left out.

    Raises:
        InputError: if fewer than two different scenes are left.
    """
    scenes = {reference: scene for reference in references if (scene := scene_of(reference)) is not None}
    kept = [reference for reference in references if reference in scenes]
    if len(set(scenes.values())) < 2:
        raise InputError("controls need the references of at least two different scenes")
    order = rng(seed, "controls").permutation(len(kept)).tolist()
    other: dict[int, str] = {}
    for rank, i in enumerate(order):
        following = (kept[order[(rank + step) % len(order)]] for step in range(1, len(order)))
        other[i] = next(text for text in following if scenes[text] != scenes[kept[i]])
    answers = {"empty": [""] * len(kept), "other_scene": [other[i] for i in range(len(kept))], "truth": kept}
    return {
        name: float(np.mean([measure(reference, text)["score"] for reference, text in zip(kept, texts, strict=True)]))
        for name, texts in answers.items()
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

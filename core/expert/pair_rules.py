"""The reference expert's rule for hallucination pairs: what the lexicon's rules make of the caption, in text alone.

PairTask(caption="A man rides a brown horse.", other_captions=[], kind="attribute")
->  PairAnswer(org="brown", target="white", kind="attribute")
"""

import polars as pl

from core.corruption.caption_pairs import draw_edits, sites_by_kind
from core.corruption.caption_text import read_caption
from core.corruption.hallucination import KINDS, PairKind, make_pairs
from core.expert.pair_request import PairAnswer, PairTask
from core.seeds import rng, stream_key
from core.worlds.scenes import scene_of

_TRIES = 12


def invent_by_rule(task: PairTask) -> PairAnswer:
    """A change of the wanted kind, else of another one; an empty `org` if the rules know none.

    The same task has the same answer. `org` occurs in the caption once.
    """
    find = _scene_changes if scene_of(task.caption) is not None else _caption_changes
    for kinds in ((task.kind,), KINDS):
        for org, target, kind in find(task, kinds):
            if task.caption.count(org) == 1:
                return PairAnswer(org=org, target=target, kind=kind)
    return PairAnswer(org="", target="", kind=task.kind)


def _caption_changes(task: PairTask, kinds: tuple[PairKind, ...]) -> list[tuple[str, str, PairKind]]:
    caption = read_caption(task.caption)
    elsewhere = frozenset[str]().union(*(read_caption(text).words for text in task.other_captions))
    sites = sites_by_kind(caption, elsewhere, kinds)
    edits = draw_edits(caption, elsewhere, sites, _TRIES, rng("invent", task.model_dump_json()))
    return [(task.caption[edit.start : edit.end], edit.target, edit.kind) for edit in edits]


def _scene_changes(task: PairTask, kinds: tuple[PairKind, ...]) -> list[tuple[str, str, PairKind]]:
    """Changes by the rules of the scene world, which know what its captions mean. Words are quoted with neighbours."""
    samples = pl.DataFrame({"sample_id": [""], "reference": [task.caption]})
    pairs = make_pairs(samples, per_sample=_TRIES, seed=stream_key("invent", task.kind), kinds=kinds).pairs
    changes: list[tuple[str, str, PairKind]] = []
    for row in pairs.iter_rows(named=True):
        start, end = _unique(row["original_caption"], row["start"], row["end"])
        shorter = len(row["original_caption"]) - end
        target = row["changed_caption"][start : len(row["changed_caption"]) - shorter]
        changes.append((row["original_caption"][start:end], target, row["kind"]))
    return changes


def _unique(text: str, start: int, end: int) -> tuple[int, int]:
    """The span with as many words in front as make it occur in the text once."""
    while text.count(text[start:end]) > 1 and start > 0:
        start = text.rfind(" ", 0, start - 1) + 1
    return start, end

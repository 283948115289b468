"""ViCrit-style pairs for real captions: one object, attribute, count, place or relation replaced by a wrong one.

    "A man rides a brown horse." -> attribute -> "A man rides a white horse."

The rules and the words they know are curated (see lexicon/): a replacement is plausible, fits the grammar of the
caption, is neither a synonym nor a broader or narrower word, and is mentioned in no caption of the same image.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from core.corruption.caption_sites import Option, Site, find_sites
from core.corruption.caption_text import Caption, article_faults, article_of, read_caption, repeats
from core.corruption.hallucination import KINDS, MadePairs, PairKind
from core.corruption.rows import reject_frame
from core.errors import ConfigError
from core.seeds import rng as stream
from data_contracts import HallucinationPairs

T = TypeVar("T")
_AROUND = 40
"""Chars beside an edit that tell how it reads."""
_WEIGHTS: dict[PairKind, float] = {"object": 0.6, "attribute": 2.0, "count": 10.0, "place": 4.0, "relation": 1.2}
"""Few captions of one sentence state a number or a place: preferring those there makes the kinds come out even."""


_NO_FACT = ("no_such_fact", "the caption states nothing of these kinds that the rules can judge")
_ALL_MENTIONED = ("no_plausible_change", "the captions of the image mention every replacement")


@dataclass(frozen=True, slots=True)
class Edit:
    """Chars [start, end) of a caption and what replaces them."""

    kind: PairKind
    start: int
    end: int
    target: str


def make_caption_pairs(
    samples: pl.DataFrame,
    *,
    per_sample: int,
    seed: int,
    kinds: Sequence[PairKind] = KINDS,
    balance: bool = False,
    elsewhere: pl.DataFrame | None = None,
) -> MadePairs:
    """Up to `per_sample` different pairs of each of the Samples rows; captions of one image share its `image_sha`.

    `elsewhere` (image_sha, reference): captions of the same images that are not among the samples.

    Pairs of a sample go through `kinds` in random order, rare kinds tending to be first, and depend on nothing but the
    seed, the sample and the other captions of its image. With `balance` the kinds are evened out over the whole frame
    (so a pair depends on all rows, not on their order): the sample with the fewest possible kinds chooses first, and
    takes the kind that was taken least so far.

    Reasons of rejects: `no_such_fact` (nothing of these kinds is stated in a way that the rules can judge),
    `no_plausible_change` (every replacement is mentioned in the captions of the image).

    Raises:
        ConfigError: if `kinds` is empty or names an unknown kind.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ConfigError(f"pair kinds must be some of {', '.join(KINDS)}; got {list(kinds)}")
    images = _Images(samples, elsewhere)
    rows, rejects = [], []
    found: dict[str, list[Edit]] = {}
    for sample_id, sha, text in samples.select("sample_id", "image_sha", "reference").iter_rows():
        caption, mentioned = images.of(sha, text)
        sites = sites_by_kind(caption, mentioned, kinds)
        rng = stream(seed, "caption pairs", sample_id)
        edits = draw_edits(caption, mentioned, sites, per_sample, rng, every_kind=balance)
        if edits:
            found[sample_id] = edits
        else:
            rejects.append((sample_id, *(_ALL_MENTIONED if sites else _NO_FACT)))
    chosen = _balanced(found, per_sample, kinds) if balance else found
    for sample_id, text in samples.select("sample_id", "reference").iter_rows():
        rows += [_row(f"{sample_id}-p{k}", sample_id, text, edit) for k, edit in enumerate(chosen.get(sample_id, ()))]
    return MadePairs(
        pairs=pl.DataFrame(rows, schema=HallucinationPairs.create_empty().schema, orient="row"),
        rejects=reject_frame(*([row[i] for row in rejects] for i in range(3))),
    )


class _Images:
    """The captions of each image, read once."""

    def __init__(self, samples: pl.DataFrame, elsewhere: pl.DataFrame | None) -> None:
        self._texts: dict[str, list[str]] = {}
        for frame in (samples, *([] if elsewhere is None else [elsewhere])):
            for sha, text in frame.select("image_sha", "reference").iter_rows():
                if sha is not None:
                    self._texts.setdefault(sha, []).append(text)
        self._read: dict[str, list[Caption]] = {}

    def of(self, sha: str | None, text: str) -> tuple[Caption, frozenset[str]]:
        """A caption, and what the other captions of its image mention."""
        if sha is None:
            return read_caption(text), frozenset()
        captions = self._read.get(sha)
        if captions is None:
            captions = self._read[sha] = [read_caption(other) for other in self._texts[sha]]
        own = next(caption for caption in captions if caption.text == text)
        return own, frozenset().union(*(caption.words for caption in captions if caption is not own))


def sites_by_kind(caption: Caption, elsewhere: frozenset[str], kinds: Sequence[PairKind]) -> dict[PairKind, list[Site]]:
    """The sites of the wanted kinds. `elsewhere`: what the other captions of the image mention."""
    sites: dict[PairKind, list[Site]] = {}
    for site in find_sites(caption, caption.words | elsewhere):
        if site.kind in kinds:
            sites.setdefault(site.kind, []).append(site)
    return sites


def draw_edits(
    caption: Caption,
    elsewhere: frozenset[str],
    sites: Mapping[PairKind, Sequence[Site]],
    count: int,
    rng: np.random.Generator,
    *,
    every_kind: bool = False,
) -> list[Edit]:
    """Up to `count` different edits, going through the kinds in random order; `every_kind`: that many of each kind."""
    order = _order(sorted(sites), rng, weighted=caption.sentences[-1] == 0)
    queues = {kind: _edits(caption, elsewhere, sites[kind], rng) for kind in order}
    edits: dict[tuple[int, str], Edit] = {}
    while queues and (every_kind or len(edits) < count):
        for kind in list(queues):
            edit = next(queues[kind], None)
            if edit is None:
                del queues[kind]
                continue
            edits.setdefault((edit.start, edit.target), edit)
            if not every_kind and len(edits) == count:
                break
        if every_kind and len(edits) >= count * len(order):
            break
    return list(edits.values())


def _order(kinds: Sequence[PairKind], rng: np.random.Generator, *, weighted: bool) -> list[PairKind]:
    """A random order; if `weighted`, heavier kinds tend to come first (Efraimidis and Spirakis 2006)."""
    draws = rng.random(len(kinds)).tolist()
    keys = {kind: draw ** (1 / _WEIGHTS[kind] if weighted else 1.0) for kind, draw in zip(kinds, draws, strict=True)}
    return sorted(keys, key=lambda kind: keys[kind], reverse=True)


def _edits(
    caption: Caption, elsewhere: frozenset[str], sites: Sequence[Site], rng: np.random.Generator
) -> Iterator[Edit]:
    """Edits in random order: one at each site, then a second one at each, and so on."""
    waiting = deque((site, _allowed(caption, elsewhere, site, rng)) for site in _shuffled(sites, rng))
    while waiting:
        site, options = waiting.popleft()
        option = next(options, None)
        if option is not None:
            edit = _edit(caption, site, option.text)
            if not _reads_worse(caption.text, edit):
                yield edit
            waiting.append((site, options))


def _reads_worse(text: str, edit: Edit) -> bool:
    """Whether an edit makes a word follow itself, or an article not fit: "a an orange" -> "a a kiwi"."""
    before, after = text[max(0, edit.start - _AROUND) : edit.start], text[edit.end : edit.end + _AROUND]
    old, new = f"{before}{text[edit.start : edit.end]}{after}", f"{before}{edit.target}{after}"
    return article_faults(new) > article_faults(old) or repeats(new) > repeats(old)


def _allowed(caption: Caption, elsewhere: frozenset[str], site: Site, rng: np.random.Generator) -> Iterator[Option]:
    """The options that may stand at a site, in random order."""
    return (option for option in _shuffled(site.options, rng) if allowed(caption, elsewhere, site, option))


def _shuffled(values: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [values[i] for i in np.argsort(rng.random(len(values))).tolist()] if len(values) > 1 else list(values)


def allowed(caption: Caption, elsewhere: frozenset[str], site: Site, option: Option) -> bool:
    """Whether no caption of the image mentions the replacement; for a place or relation: says so of these things."""
    if not option.names.isdisjoint(elsewhere) or not option.broader.isdisjoint(elsewhere):
        return False
    if not site.nearby or caption.sentences[-1] == 0:
        return option.names.isdisjoint(caption.words) and option.broader.isdisjoint(caption.words)
    if option.names.isdisjoint(caption.words):
        return True
    here = caption.sentences[site.index]
    mentions = {caption.sentences[i] for i, item in enumerate(caption.items) if item in option.names}
    things = _nouns(caption, here)
    return here not in mentions and all(things.isdisjoint(_nouns(caption, sentence)) for sentence in mentions)


def _nouns(caption: Caption, sentence: int) -> set[str]:
    entries = zip(caption.entries, caption.sentences, strict=True)
    return {entry.nouns[0].cluster for entry, at in entries if at == sentence and entry is not None and entry.nouns}


def _edit(caption: Caption, site: Site, text: str) -> Edit:
    """The replacement with the case of the original, and with its article where "a" becomes "an"."""
    start, end = caption.starts[site.index], caption.ends[site.index]
    article = caption.before(site.index)
    if article in ("a", "an") and article != article_of(text) and not caption.opens(site.index):
        start = caption.starts[site.index - 1]
        text = f"{article_of(text)} {text}"
    if caption.text[start].isupper():
        text = text[0].upper() + text[1:]
    return Edit(site.kind, start, end, text)


def _balanced(found: Mapping[str, list[Edit]], per_sample: int, kinds: Sequence[PairKind]) -> dict[str, list[Edit]]:
    """Of every sample's edits those that even out the kinds over all samples."""
    taken = dict.fromkeys(kinds, 0)
    chosen: dict[str, list[Edit]] = {sample_id: [] for sample_id in found}
    order = sorted(found, key=lambda sample_id: (len({edit.kind for edit in found[sample_id]}), sample_id))
    for _ in range(per_sample):
        for sample_id in order:
            left = [edit for edit in found[sample_id] if edit not in chosen[sample_id]]
            if left:
                edit = min(left, key=lambda edit: taken[edit.kind])
                taken[edit.kind] += 1
                chosen[sample_id].append(edit)
    return chosen


def _row(pair_id: str, sample_id: str, text: str, edit: Edit) -> tuple[str | int, ...]:
    start, end = edit.start, edit.end
    changed = text[:start] + edit.target + text[end:]
    return (pair_id, sample_id, edit.kind, text, changed, text[start:end], edit.target, start, end)

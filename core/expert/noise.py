"""How the reference expert can be made worse, on purpose: for studies of how much a method depends on its expert.

Everything is drawn from the request, so that the same question always has the same answer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from core.alignment import Segment
from core.corruption.caption_pairs import draw_edits, sites_by_kind
from core.corruption.caption_text import read_caption
from core.corruption.hallucination import KINDS
from core.corruption.lexicon import load
from core.expert.reask_request import ReaskTask
from core.expert.request import Task
from core.expert.settings import ReferenceSettings
from core.seeds import rng
from core.worlds.scenes import scene_of
from core.worlds.scenes_grammar import FREE, MEANINGS, TEMPLATES

_FILLERS = ("quite", "clearly")
"""What lengthens a segment: in a scene's caption, in any other text."""
_SUFFIX = re.compile(r"-(omits|errs|rewrites|resizes|complies)-(\d(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Shares of: mistakes left unsaid; corrections that are wrong; true words reworded; segments of another length.

    complies: share of the segments of another length that it mends when it is asked again.
    """

    omits: float = 0.0
    errs: float = 0.0
    rewrites: float = 0.0
    resizes: float = 0.0
    complies: float = 1.0

    def apply(self, task: Task, segments: Sequence[Segment]) -> list[Segment]:
        """The segments of a flawless expert as this one would give them. Each `org` occurs in the draft once."""
        draft, is_scene = task.prediction, scene_of(task.ground_truth) is not None
        kept = [s for s in segments if rng("omitted", draft, s.org).random() >= self.omits]
        found = kept
        if self.errs or self.rewrites:
            words = _Words.of(draft, segments, is_scene=is_scene)
            wrong = words.wrong(self._number_of_wrong(task, len(kept)), rng("wrong", draft, task.ground_truth))
            styled = words.rewritten(self.rewrites, taken={segment.org for segment in wrong})
            found = sorted([*kept, *wrong, *styled], key=lambda segment: draft.find(segment.org))
        filler = _filler(task.ground_truth)
        longer = [rng("resized", draft, s.org).random() < self.resizes for s in found]
        return [Segment(s.org, f"{filler} {s.target}") if more else s for s, more in zip(found, longer, strict=True)]

    def apply_again(self, task: ReaskTask) -> list[Segment]:
        """The answer to the second question: what it had made longer is as long as it should be, or longer still."""
        filler = f"{_filler(task.ground_truth)} "
        resized = [one for one in task.rejected if one.target.startswith(filler)]
        mends = [rng("complies", task.prediction, one.org).random() < self.complies for one in resized]
        return [
            Segment(one.org, one.target.removeprefix(filler) if mend else one.target)
            for one, mend in zip(resized, mends, strict=True)
        ]

    def _number_of_wrong(self, task: Task, kept: int) -> int:
        """As many as make `errs` of all corrections wrong, on average over drafts."""
        if not self.errs:
            return 0
        expected = kept * self.errs / (1 - self.errs)
        return int(expected + rng("errs", task.prediction, task.ground_truth).random())


def _filler(ground_truth: str) -> str:
    return _FILLERS[0 if scene_of(ground_truth) is not None else 1]


def noise_of(asked: str, settings: ReferenceSettings) -> Noise | None:
    """The noise of the model that is asked for: the settings', changed by what follows the served name.

    Example: "reference-omits-0.3-errs-0.1" -> Noise(omits=.3, errs=.1). None: that model is not served, and answering
    for it would fill a ledger with wrong replies.
    """
    rest = asked.removeprefix(settings.model)
    suffixes = _SUFFIX.findall(rest)
    shares = {name: float(share) for name, share in suffixes}
    written = "".join(f"-{name}-{share}" for name, share in suffixes)
    once = len(shares) == len(suffixes)
    possible = all(share <= 1 for share in shares.values()) and shares.get("errs", 0.0) < 1
    if not asked.startswith(settings.model) or rest != written or not once or not possible:
        return None
    known = {
        "omits": 1 - settings.recall,
        "errs": 1 - settings.precision,
        "rewrites": settings.style_rewrites,
        "resizes": settings.unequal_length,
        "complies": settings.compliance,
    }
    return Noise(**(known | shares))


@dataclass(frozen=True, kw_only=True)
class _Words:
    """The words of a draft that are true as they stand and occur in it once."""

    draft: str
    words: tuple[str, ...]
    is_scene: bool

    @classmethod
    def of(cls, draft: str, segments: Sequence[Segment], *, is_scene: bool) -> "_Words":
        spans = [(draft.find(org), draft.find(org) + len(org)) for org, _ in segments if org]
        free = [
            match.group()
            for match in re.finditer(r"\w+", draft)
            if draft.count(match.group()) == 1
            and not any(start < match.end() and match.start() < end for start, end in spans)
        ]
        return cls(draft=draft, words=tuple(free), is_scene=is_scene)

    def wrong(self, number: int, stream: np.random.Generator) -> list[Segment]:
        """At most so many changes of true words into false ones."""
        if not number:
            return []
        if self.is_scene:
            options = {word: others for word in self.words if (others := _scene_words()[1].get(word))}
            return [Segment(word, _one_of(options[word], stream)) for word in _some(list(options), number, stream)]
        return list(self._lexical(number, stream))

    def rewritten(self, share: float, *, taken: set[str]) -> list[Segment]:
        """That share of the words that have a synonym, as their synonym."""
        segments = []
        for word in self.words if share else ():
            stream = rng("rewritten", self.draft, word)
            synonyms = _scene_words()[0].get(word, ()) if self.is_scene else _synonyms(word)
            if synonyms and stream.random() < share and not any(word in org.split() for org in taken):
                segments.append(Segment(word, _one_of(synonyms, stream)))
        return segments

    def _lexical(self, number: int, stream: np.random.Generator) -> Iterator[Segment]:
        caption, nowhere = read_caption(self.draft), frozenset[str]()
        edits = draw_edits(caption, nowhere, sites_by_kind(caption, nowhere, KINDS), 4 * number, stream)
        chosen: set[str] = set()
        for edit in edits:
            org = self.draft[edit.start : edit.end]
            if org in self.words and org not in chosen and len(chosen) < number:
                chosen.add(org)
                yield Segment(org, edit.target)


def _one_of(options: Sequence[str], stream: np.random.Generator) -> str:
    return options[int(stream.integers(len(options)))]


def _some(words: Sequence[str], number: int, stream: np.random.Generator) -> list[str]:
    return [words[i] for i in stream.permutation(len(words))[:number]]


@cache
def _scene_words() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Word of the scene world -> its synonyms, and -> words that say something else in its place.

    Words that more than one slot or template uses are left out: what they mean depends on where they stand.
    """
    groups = [(slot, words) for slot, table in MEANINGS.items() for words in table.values()]
    groups += list(FREE.items())
    literal = [word for template in TEMPLATES for word in template.slots]
    count: dict[str, int] = {}
    for word in [*literal, *(word for _, words in groups for word in words)]:
        count[word] = count.get(word, 0) + 1
    synonyms, others = {}, {}
    for slot, words in groups:
        for word in words:
            if count[word] == 1:
                synonyms[word] = tuple(other for other in words if other != word)
                said = MEANINGS[slot].values() if slot in MEANINGS else ()
                others[word] = tuple(other for meant in said if word not in meant for other in meant)
    return synonyms, others


@cache
def _synonyms(word: str) -> tuple[str, ...]:
    """Single words that WordNet gives for `word`."""
    same = load().relations.get(word, (frozenset[str](),) * 3)[0]
    return tuple(sorted(other for other in same if " " not in other))

"""Build relations.tsv, what WordNet knows of the curated words: `python -m core.corruption.lexicon.build FOLDER`.

A row is a curated word, its synonyms, hypernyms and hyponyms, each joined by "|". Nothing reads WordNet at run time.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.corruption.lexicon.tables import read_table, regular_plural

_FOLDER = Path(__file__).parent
_SENSES = 2
"""Synonyms are those of a word's commonest senses, the other relations those of the first one."""
_UP, _DOWN = 3, 2


@dataclass(slots=True)
class _Synset:
    words: list[str]
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    similar: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """The synsets of one part of speech by offset, and the offsets of each word's senses, commonest first."""

    synsets: dict[int, _Synset]
    senses: dict[str, list[int]]


def main() -> int:
    """Write relations.tsv beside this file."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m core.corruption.lexicon.build FOLDER_WITH_data.noun\n")
        return 2
    parts = {name: _read(Path(sys.argv[1]), name) for name in ("noun", "adj")}
    lines = ["# word\tsynonyms\thypernyms\thyponyms"]
    for part, words in (("noun", _nouns()), ("adj", _adjectives())):
        for word in sorted(words):
            same, up, down = _relations(parts[part], word)
            if same or up or down:
                lines.append("\t".join([word, "|".join(sorted(same)), "|".join(sorted(up)), "|".join(sorted(down))]))
    (_FOLDER / "relations.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _nouns() -> set[str]:
    members = (member for _, cluster, *_ in read_table("nouns") for member in cluster.lstrip("*").split("|"))
    return {next(form for form in member.split("/") if form != "-") for member in members}


def _adjectives() -> set[str]:
    tables = ("colours", "materials", "senses")
    rows: Iterable[str] = (row[1] for table in tables for row in read_table(table))
    return {form for row in rows for form in row.lstrip("*").split("|")}


def _too_general() -> set[str]:
    """Hypernyms of nearly everything: they say nothing."""
    return next(set(words.split()) for name, words in read_table("words") if name == "generic")


def _read(folder: Path, part: str) -> _Part:
    synsets: dict[int, _Synset] = {}
    for line in _lines(folder / f"data.{part}"):
        fields = line.partition(" | ")[0].split()
        count = int(fields[3], 16)
        synset = _Synset([_plain(word) for word in fields[4 : 4 + 2 * count : 2]])
        pointers = fields[5 + 2 * count :]
        for symbol, offset in zip(pointers[0::4], pointers[1::4], strict=False):
            links = {"@": synset.up, "~": synset.down, "&": synset.similar}.get(symbol)
            if links is not None:
                links.append(int(offset))
        synsets[int(fields[0])] = synset
    senses: dict[str, list[int]] = defaultdict(list)
    for line in _lines(folder / f"index.{part}"):
        fields = line.split()
        senses[_plain(fields[0])] = [int(offset) for offset in fields[-int(fields[2]) :]]
    return _Part(synsets, senses)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith("  "))  # the licence is on top of every file


def _plain(word: str) -> str:
    """ "living_room" -> "living room"; adjectives' markers such as (a) are dropped."""
    return word.partition("(")[0].replace("_", " ").lower()


def _relations(part: _Part, word: str) -> tuple[set[str], set[str], set[str]]:
    offsets = (part.senses.get(word) or part.senses.get(word.removesuffix("s"), []))[:_SENSES]
    synsets = [part.synsets[offset] for offset in offsets]
    same = _words([*synsets, *(part.synsets[offset] for synset in synsets for offset in synset.similar)])
    up = _words(_reach(part, offsets[:1], "up", _UP)) - _too_general()
    down = _words(_reach(part, offsets[:1], "down", _DOWN))
    return same - {word}, up - same - {word}, down - same - up - {word, regular_plural(word)}


def _reach(part: _Part, offsets: list[int], links: str, depth: int) -> list[_Synset]:
    found: list[_Synset] = []
    for _ in range(depth):
        offsets = [link for offset in offsets for link in getattr(part.synsets[offset], links)]
        found += [part.synsets[offset] for offset in offsets]
    return found


def _words(synsets: Iterable[_Synset]) -> set[str]:
    """Their words of one or two plain parts: longer ones do not turn up in captions."""
    words = {word for synset in synsets for word in synset.words}
    return {word for word in words if word.count(" ") < 2 and word.replace(" ", "").isalpha()}


if __name__ == "__main__":
    sys.exit(main())

"""The lexicon's tables as rows of text."""

from collections.abc import Iterator
from importlib.resources import files


def read_table(name: str) -> Iterator[list[str]]:
    """Fields of each row of NAME.tsv, without its comments; empty fields at the end may be left out."""
    text = (files("core.corruption.lexicon") / f"{name}.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield line.split("\t")


def regular_plural(word: str) -> str:
    """ "bench" -> "benches"; irregular ones are spelt out in the tables."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"

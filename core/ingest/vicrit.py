"""ViCrit's pairs -> raw rows with a hallucination each.

    {"image": "a.jpg", "problem": "Describe.", "original_caption": "A red ring. ", "changed_caption": "A blue ring.",
     "solution_original": "red", "solution_target": "blue", "type": "replace_att"}
    -> RawRow(image="a.jpg", prompt="Describe.", reference="A red ring.",
              pair=RawPair(changed="A blue ring.", start=2, end=5, target="blue", kind="attribute"))

Direction: the original caption is right and holds `solution_original`; the changed one is wrong and holds
`solution_target`. Either solution may be empty (something was put in, or left out).

White space: captions are taken without their outer white space. Where they differ within by white space alone, the
original's is kept, so that original[:start] + target + original[end:] == changed holds char by char. A word that is put
in or left out takes a neighbouring space along: target "tattooed " in "a tattooed young woman".

A pair counts if replacing its solution at one place of the original gives the changed caption; the first such place is
taken. A swap is one replacement that spans both places and all between them, as the file says.
"""

from collections.abc import Iterator
from pathlib import Path

from core.errors import RowError
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, image_at, record_rows, text_at, without_placeholder
from core.ingest.records import Json
from core.ingest.rows import RawPair, RawRow
from data_contracts.hallucination_pairs import PAIR_KINDS

_KINDS = {"att": "attribute", "obj": "object", "rel": "relation"}


def rows(path: Path) -> Iterator[Row]:
    """The pairs of a file, in order; one that cannot be used becomes one `BadRow`."""
    return record_rows(path, parse)


def parse(place: str, record: JsonObject) -> list[Row]:
    """The row of one record.

    Raises:
        RowError: missing_text, text_not_a_string, invalid_unicode, many_images, bad_image_field, empty_caption, or one
            of those of `locate`.
    """
    original, changed = (text_at(record, f"{name}_caption").strip() for name in ("original", "changed"))
    if not original or not changed:
        raise RowError("empty_caption")
    before, after = (text_at(record, f"solution_{name}") for name in ("original", "target"))
    problem = text_at(record, "problem") if record.get("problem") is not None else ""
    start, end, target = locate(original, changed, before, after)
    pair = RawPair(
        changed=original[:start] + target + original[end:],
        start=start,
        end=end,
        target=target,
        kind=kind_of(record.get("type")),
    )
    image = image_at(record, "image", "images")
    return [RawRow(place=place, image=image, prompt=without_placeholder(problem, image), reference=original, pair=pair)]


def kind_of(name: Json) -> str | None:
    """What was made wrong: "replace_att" or "attribute" -> "attribute"; None for names that do not tell."""
    if not isinstance(name, str):
        return None
    return name if name in PAIR_KINDS else _KINDS.get(name.rpartition("_")[2])


def locate(original: str, changed: str, before: str, after: str) -> tuple[int, int, str]:
    """(start, end, target): the chars of `original` that become `target`.

    Example: "A young man.", "A tall young man.", "", "tall" -> (2, 2, "tall ").

    Raises:
        RowError: captions_equal, solution_not_found (in its caption), or captions_differ_elsewhere.
    """
    narrow, places = _squash(original)
    if narrow == _squash(changed)[0]:
        raise RowError("captions_equal", "the captions differ by nothing but white space")
    exact = _replacement(original, changed, before, after)
    if exact is not None:
        return exact
    squashed = _replacement(narrow, _squash(changed)[0], _squash(before)[0], _squash(after)[0])
    if squashed is not None:
        start, end, target = squashed
        return places[start], places[end], target
    for name, caption, solution in (("original", original, before), ("target", changed, after)):
        if _squash(solution)[0] not in _squash(caption)[0]:
            raise RowError("solution_not_found", f"solution_{name} {solution!r} is not in its caption")
    raise RowError("captions_differ_elsewhere", f"more differs than {before!r} -> {after!r}")


def _replacement(original: str, changed: str, before: str, after: str) -> tuple[int, int, str] | None:
    """The first place of `before` where `after` gives `changed`, with a space more on one side if one is empty."""
    if before and after:
        return _place(original, changed, before, after)
    for left, right in (("", ""), ("", " "), (" ", "")):
        found = _place(original, changed, *(f"{left}{text}{right}" if text else "" for text in (before, after)))
        if found is not None:
            return found
    return None


def _place(original: str, changed: str, before: str, after: str) -> tuple[int, int, str] | None:
    """The first place of `before` in `original` where replacing it by `after` gives `changed`."""
    if len(changed) - len(original) != len(after) - len(before):
        return None
    same_left = _same_start(original, changed)
    same_right = _same_start(original[::-1], changed[::-1])
    start = original.find(before, max(0, len(original) - same_right - len(before)))
    while 0 <= start <= same_left:
        if changed.startswith(after, start):
            return start, start + len(before), after
        start = original.find(before, start + 1)
    return None


def _same_start(one: str, other: str) -> int:
    """How many chars two texts have in common at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _squash(text: str) -> tuple[str, list[int]]:
    """`text` with each run of white space as one space, and where in `text` each of its chars (and its end) stands.

    Example: " a  b" -> ("a b", [1, 2, 4, 5]).
    """
    words, at = text.split(), 0
    places: list[int] = []
    for word in words:
        gap, at = at, text.index(word, at)
        places += [gap] if places else []
        places += range(at, at + len(word))
        at += len(word)
    return " ".join(words), [*places, at]

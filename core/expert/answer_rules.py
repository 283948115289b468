r"""The reference expert's rule for worked answers: only the result in the last \boxed{...} is looked at.

reference  "18.0"
draft      "She sells 9 eggs at $2 each. \boxed{17}"      ->  "She sells 9 eggs at $2 each. \boxed{18.0}"
"""

_BOX = r"\boxed{"


def with_right_answer(reference: str, draft: str) -> str | None:
    """The draft with the reference in its last box; None if the draft has no box, or the reference has one itself."""
    start = draft.rfind(_BOX)
    if start < 0 or _BOX in reference:
        return None
    start += len(_BOX)
    end = _closing(draft, start)
    if end is None:
        return None
    said = draft[start:end]
    return draft if _same(said, reference) else draft[:start] + reference + draft[end:]


def _closing(text: str, start: int) -> int | None:
    """Where the brace closes that is open at `start`."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return index
    return None


def _same(one: str, other: str) -> bool:
    """Equal as numbers, or as texts, white space aside."""
    try:
        return float(one.replace(",", "")) == float(other.replace(",", ""))
    except ValueError:
        return "".join(one.split()) == "".join(other.split())

"""How numbers and foreign text are written for people."""

from typing import Any

from flows.summary import ArmResult


def duration(seconds: float | None) -> str:
    """'0.4 s', '3 min 12 s', '1 h 04 min'."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: int | None) -> str:
    """'12,345', or '–' if unknown."""
    return "–" if value is None else f"{value:,}"


def total(counts: dict[str, int]) -> int:
    """Sum of counts by reason."""
    return sum(counts.values())


def visible(text: Any) -> str:
    """Control characters as their pictures (␀ ␇ …), so that a browser neither drops them nor stumbles."""
    return "".join(chr(0x2400 + ord(char)) if ord(char) < 32 and char not in "\n\t" else char for char in str(text))


def interval(result: ArmResult) -> str:
    """The interval as '81.0-84.2', empty if unknown."""
    return f"{result.low:.1f}–{result.high:.1f}" if result.low is not None and result.high is not None else ""

"""What an endpoint's headers say about how fast it may be asked: x-ratelimit-*."""

import re
from collections.abc import Mapping

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|h|m|s|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def wait_s(headers: Mapping[str, str], kind: str, needed: int) -> float:
    """Seconds until `needed` requests or tokens are left: x-ratelimit-remaining-KIND, -limit-KIND and -reset-KIND.

    The reset is when all of the limit is there again; it fills up evenly, so a part is there earlier.
    """
    try:
        left = float(headers[f"x-ratelimit-remaining-{kind}"])
        reset = seconds_of(headers[f"x-ratelimit-reset-{kind}"])
        full = float(headers.get(f"x-ratelimit-limit-{kind}", "0"))
    except (KeyError, ValueError):
        return 0.0
    if left >= needed:
        return 0.0
    return reset * (min(1.0, (needed - left) / (full - left)) if full > left else 1.0)


def seconds_of(text: str) -> float:
    """ "6m0s", "20ms", "1.5" or "1h2m" in seconds. Raises ValueError."""
    parts = list(_DURATION.finditer(text.strip()))
    if not parts or "".join(part.group() for part in parts) != text.strip():
        raise ValueError(f"no duration: {text[:20]!r}")
    return sum(float(part["number"]) * _SECONDS[part["unit"]] for part in parts)

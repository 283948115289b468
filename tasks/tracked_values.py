"""Values as MLflow takes them, and whether a failure means that its server is gone."""

from collections.abc import Mapping

import requests

_TAG_LIMIT = 5000  # characters that a reader can use; MLflow refuses more than 8000


def is_unreachable(error: BaseException | None) -> bool:
    """Whether the reason is a server that is gone or hangs; MLflow wraps the exceptions of requests."""
    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout) or "API request to" in str(error)[:40]:
            return True
        error = error.__cause__ or error.__context__
    return False


def fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags, cut to the length that MLflow takes."""
    return {key: str(value)[:_TAG_LIMIT] for key, value in tags.items()}


def flat(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names: {"train": {"steps": 3}} -> {"train.steps": "3"}."""
    found: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: str(value)}
    return found

"""What a run can know at its start: a key that is not set, or an expert that does not answer, not after an hour."""

import httpx

from core.config import RunConfig
from core.errors import ExpertUnavailable
from tasks.revise import client_of
from tasks.workplace import Workplace

_SECONDS = 10.0


def preflight(config: RunConfig, place: Workplace) -> None:
    """Look whether the configured expert can be asked.

    Raises:
        ConfigError: the environment variable of its key is not set.
        ExpertUnavailable: nothing answers at its address.
    """
    client_of(place, config.expert)
    if config.rounds.n == 0 or not config.expert.base_url:
        return
    address = f"{config.expert.base_url.rstrip('/')}/models"
    try:
        with httpx.Client(timeout=_SECONDS, follow_redirects=True) as http:
            http.get(address)
    except httpx.HTTPError as error:
        raise ExpertUnavailable(
            f"the expert at {config.expert.base_url} cannot be reached ({type(error).__name__}: {error}). Start it, or "
            "correct expert.base_url; without a base_url the reference expert is used"
        ) from error

"""What a run can know at its start: a key is not set, an expert does not answer, a checkpoint cannot be used."""

import httpx

from core.config import RunConfig
from core.errors import ConfigError, ExpertUnavailable
from core.models.denoiser import load_denoiser
from tasks.compute import one_each
from tasks.revise import client_of
from tasks.workplace import Workplace

_SECONDS = 10.0


def check_model(config: RunConfig) -> None:
    """Look whether the user's checkpoint can be loaded and can read the data. No weight is read: names and sizes are.

    Raises:
        InputError: the folder is no checkpoint of a known type, tensors are missing, the tokenizer has no mask.
        ConfigError: the model reads no images, and the data has some.
    """
    model = load_denoiser(config.model.checkpoint, device="meta")
    if config.data.images and not model.vision_parameters():
        raise ConfigError(
            f"{config.model.checkpoint} reads no images, but data.images is {config.data.images}: take a model with a "
            'vision tower, or leave the images out with data.images = "" and ingest.text_only = true'
        )


def check_devices(config: RunConfig) -> None:
    """Raise ConfigError if a device of `compute.devices` is not there, or there are fewer than `compute.processes`."""
    one_each(config.compute.devices, config.compute.processes)


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

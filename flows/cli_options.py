"""What several verbs of the command take."""

from typing import Annotated

from cyclopts import Parameter, validators

from core.config import RunConfig
from core.decoding.settings import DecodeSettings

Config = Annotated[RunConfig, Parameter(name="*")]
POSITIVE = validators.Number(gte=1)
Limit = Annotated[int | None, Parameter(validator=POSITIVE)]
Json = Annotated[bool, Parameter(name="--json", negative="")]
DEFAULTS = RunConfig()


def in_blocks(config: RunConfig, block_length: int | None) -> RunConfig:
    """The configuration with this block length in all its drafts' decoder settings; None: as it is."""
    if block_length is None:
        return config
    parsed = [DecodeSettings.parse(name) for name in config.draft.settings]
    names = tuple(setting.model_copy(update={"block_length": block_length}).name for setting in parsed)
    return config.model_copy(update={"draft": config.draft.model_copy(update={"settings": names})})

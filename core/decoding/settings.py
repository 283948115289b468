"""How a response is decoded, as a user writes it. Free of torch: the command line reads this."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from core.errors import ConfigError
from core.settings import Settings

_NAME = re.compile(r"(?P<tokens_per_step>\d+)(\+(?P<extra_steps>\d+))? (?P<policy>\w+)(?P<options>( \w+=[\w.-]+)*)")
_OPTIONS = ("block_length", "start", "topk", "margin", "cache", "refresh")


class DecodeSettings(Settings):
    """Greedy decoding from an all-masked response. The defaults are ReDiff's, with no extra steps."""

    tokens_per_step: int = Field(default=4, ge=1)
    """Masks revealed a step: a block of b tokens takes ceil(b / tokens_per_step) steps."""
    extra_steps: int = Field(default=0, ge=0)
    """Further forwards once nothing is masked, each refining the whole response."""
    block_length: int | None = Field(default=None, ge=1)
    """Tokens decoded before the next block starts; null: the whole response is one block."""
    policy: Literal["freeze", "refine"] = "refine"
    """freeze: a revealed token stays (mask-predict). refine: every step overwrites visible tokens by their argmax."""
    start: float = Field(default=1.0, gt=0, le=1)
    """Refine in the last ceil(steps * start) steps of a block only."""
    topk: float = Field(default=1.0, gt=0, le=1)
    """Overwrite only this share of the visible positions, those of highest new confidence."""
    margin: float = Field(default=0.0, ge=0, le=1)
    """Overwrite only where p(new) - p(old) is at least this."""

    cache: Literal["none", "prefix", "dual"] = "none"
    """none: exact. prefix: approximate, what is before the block is read again at its start and every `refresh` steps
    alone; dual: and what is behind it, too. (That a model with prompt_attention = "prefix" reads its prompt once is
    exact, and needs no setting.)"""
    refresh: int = Field(default=1, ge=1)
    """Steps from one reading of everything to the next; 1: every step, which is exact."""

    @model_validator(mode="after")
    def _only_a_cache_is_refreshed(self) -> Self:
        if self.cache == "none" and self.refresh != 1:
            raise ValueError("refresh is for cache=prefix and cache=dual: without a cache every step reads everything")
        return self

    @model_validator(mode="after")
    def _freeze_takes_no_options(self) -> Self:
        refining = {"extra_steps", "start", "topk", "margin"}
        changed = sorted(name for name in refining if getattr(self, name) != type(self).model_fields[name].default)
        if self.policy == "freeze" and changed:
            raise ValueError(f"policy 'freeze' never changes a visible token: leave out {', '.join(changed)}")
        return self

    @property
    def name(self) -> str:
        """What tables call it, e.g. '8 freeze', '8+4 refine', '8 refine block_length=16 margin=0.1'."""
        fields = type(self).model_fields
        options = [f" {name}={getattr(self, name)}" for name in _OPTIONS if getattr(self, name) != fields[name].default]
        extra = f"+{self.extra_steps}" if self.extra_steps else ""
        return f"{self.tokens_per_step}{extra} {self.policy}{''.join(options)}"

    @classmethod
    def parse(cls, name: str) -> "DecodeSettings":
        """The settings that `name` stands for: `parse(settings.name) == settings`.

        Raises:
            ConfigError: if `name` is not of the form '8+4 refine option=value'.
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise ConfigError(
                f"decoder setting {name!r}: expected e.g. '4 freeze', '8+4 refine', '8 refine margin=0.1'"
            )
        values = {key: value for key, value in match.groupdict().items() if value is not None}
        values |= dict(option.split("=") for option in values.pop("options").split())
        try:
            return cls.model_validate(values)
        except ValueError as error:
            raise ConfigError(f"decoder setting {name!r}: {error}") from error

"""How a response is decoded, as a user writes it. Free of torch: the command line reads this."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.decoding.naming import Item, read_items, read_options, write_options
from core.errors import ConfigError
from core.settings import Settings

_NAME = re.compile(
    r"((?P<tokens_per_step>\d+)|steps=(?P<steps>\d+))(\+(?P<extra_steps>\d+))? (?P<policy>\w+)(?P<options>.*)",
    re.DOTALL,
)
_HEAD = ("tokens_per_step", "steps", "extra_steps", "policy")


def _items(value: Any) -> Any:
    return read_items(value) if isinstance(value, str) else value


Items = Annotated[tuple[Item, ...], BeforeValidator(_items)]


class DecodeSettings(Settings):
    """Decoding from an all-masked response. The defaults are ReDiff's, with no extra steps: greedy, exact."""

    tokens_per_step: int = Field(default=4, ge=1)
    """Masks revealed a step: a block of b masks takes ceil(b / tokens_per_step) steps."""
    steps: int | None = Field(default=None, ge=1)
    """Instead of tokens_per_step: steps of the whole response, shared equally by its blocks."""
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
    schedule: Literal["even", "linear", "dream", "origin"] = "even"
    """How a block's masks are shared out among its steps. even: equally, the first steps taking the remainder (LLaDA,
    LLaDA-V, ReDiff). linear: what is left over the steps left, rounded (dllm). dream: by Dream's times. origin: each
    mask by chance, by Dream's times."""
    eps: float = Field(default=1e-3, gt=0, lt=1)
    """The last of Dream's times, for the schedules dream and origin."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Approximate, for speed: reveal every mask of this confidence or more besides the quota; null: the quota alone."""
    confidence: Literal["probability", "margin", "entropy"] = "probability"
    """What ranks the masks: the argmax's probability, its margin over the second token, or the negative entropy."""
    softmax: Literal["allowed", "all"] = "allowed"
    """allowed: probabilities are over the tokens that may be written. all: also over the mask and the padding, which
    are never written, as the published codes have it."""
    grid_bits: int = Field(default=16, ge=1, le=24)
    """Confidences that agree up to 2^-grid_bits tie, and ties go to the left. Fewer bits: rounding noise, which depends
    on the batch, decides more seldom; more bits: nearer to the published codes, which have no grid."""
    cfg_scale: float = Field(default=0.0, ge=0)
    """Classifier-free guidance: blind + (cfg_scale + 1) * (seen - blind), at two forwards a step; 0: none."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the Gumbel noise on the scores (LLaDA's); 0: greedy."""
    seed: int = Field(default=0, ge=0)
    """Of the random streams, one a sample, that temperature and the schedule origin draw from."""
    suppress: Items = ()
    """Tokens (as the vocabulary has them, e.g. <|endoftext|>, or ids) that are never written and count nowhere."""
    late: Items = ()
    """Tokens or ids that may be written but have no confidence, so that they come last (LLaDA's
    confidence_eos_eot_inf, dllm's begin_suppress_tokens)."""
    stop: Items = ()
    """Texts or ids: a response ends before the first of them, once nothing before it is masked."""
    beginning: Items = ()
    """Texts and ids that every response starts with in place of masks; refining may overwrite them."""
    suffix: Items = ()
    """Texts and ids that every response ends with, part of its length; they stay."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Approximate, for speed: keys and values that are kept between steps. prefix: what is before the block is read
    again at the block's start and every `refresh` steps alone; dual: what is behind it, too. none: nothing is stale.
    (That a model with prompt_attention = "prefix" reads its prompt once is exact, and needs no option.)"""
    refresh: int = Field(default=1, ge=1)
    """Steps from one reading of everything to the next, with a cache; 1: every step, which is exact."""
    predict_mask: bool = False
    """A fault of the published codes: the mask itself may be written, and be left in the response."""

    @model_validator(mode="after")
    def _freeze_takes_no_options(self) -> Self:
        refining = {"extra_steps", "start", "topk", "margin"}
        changed = sorted(name for name in refining if name in self._changed())
        if self.policy == "freeze" and changed:
            raise ValueError(f"policy 'freeze' never changes a visible token: leave out {', '.join(changed)}")
        return self

    @model_validator(mode="after")
    def _options_take_effect(self) -> Self:
        changed = self._changed()
        if self.steps is not None and "tokens_per_step" in changed:
            raise ValueError("give tokens_per_step or steps, not both")
        if "eps" in changed and self.schedule not in ("dream", "origin"):
            raise ValueError("eps is of the schedules dream and origin")
        if "seed" in changed and not self.random:
            raise ValueError("seed needs a temperature, or the schedule origin")
        if self.schedule == "origin" and ("threshold" in changed or "confidence" in changed):
            raise ValueError("the schedule origin reveals by chance: leave out threshold and confidence")
        if "refresh" in changed and self.cache == "none":
            raise ValueError("refresh is of a cache: without one every step reads everything")
        if self.confidence != "probability" and changed.keys() & {"threshold", "late", "margin"}:
            raise ValueError("threshold, late and margin are of the confidence 'probability'")
        return self

    def _changed(self) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if getattr(self, name) != fields[name].default}

    @property
    def random(self) -> bool:
        """Whether tokens depend on `seed`."""
        return self.temperature > 0 or self.schedule == "origin"

    @property
    def forwards_per_step(self) -> int:
        """2 with guidance."""
        return 2 if self.cfg_scale > 0 else 1

    def pace(self, response_length: int) -> int:
        """Tokens a step, also where the steps are given."""
        return self.tokens_per_step if self.steps is None else math.ceil(response_length / self.steps)

    @property
    def name(self) -> str:
        """What tables call it, e.g. '8 freeze', '8+4 refine', 'steps=32 refine block_length=16 margin=0.1'."""
        options = {name: value for name, value in self._changed().items() if name not in _HEAD}
        extra = f"+{self.extra_steps}" if self.extra_steps else ""
        pace = f"{self.tokens_per_step}" if self.steps is None else f"steps={self.steps}"
        return f"{pace}{extra} {self.policy}{write_options(options)}"

    @classmethod
    def parse(cls, name: str) -> "DecodeSettings":
        """The settings that `name` stands for: `parse(settings.name) == settings`.

        Raises:
            ConfigError: if `name` is not of the form '8+4 refine option=value'.
        """
        match = _NAME.fullmatch(name.strip())
        options = None if match is None else read_options(match["options"])
        if match is None or options is None:
            raise ConfigError(
                f"decoder setting {name!r}: expected e.g. '4 freeze', '8+4 refine', '8 refine margin=0.1', "
                "'steps=32 freeze block_length=8'"
            )
        given = {key: value for key, value in match.groupdict().items() if value is not None and key != "options"}
        if doubled := sorted(given.keys() & options.keys()):
            raise ConfigError(f"decoder setting {name!r}: {', '.join(doubled)} is there twice")
        try:
            return cls.model_validate(given | options)
        except ValueError as error:
            raise ConfigError(f"decoder setting {name!r}: {error}") from error

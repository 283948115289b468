"""Readers that keep keys and values between the steps, and the choice of a reader.

With prefix attention the prompt is read once and nothing is approximated. With full attention whatever is kept is
stale, for what it attended to has changed: an approximation, unless everything is read again in every step.

Shapes: B rows, L tokens, A tokens that are run, N positions that are asked for, D hidden size, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.reading import Reader, Whole
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas, Step
from core.errors import ConfigError
from core.models.denoiser import Denoiser, Features
from core.models.key_values import KeyValues, Remembering, RememberingDenoiser


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which tokens of the response a step runs.

    Those of the block alone, or (`after`) those behind it too. Everything that can change is read again at the start of
    a block and every `refresh` steps. The extra steps are a block of the whole response.
    """

    response_length: int
    refresh: int
    after: bool

    def is_due(self, step: Step) -> bool:
        """Is everything read again?"""
        return step.local % self.refresh == 0

    def tokens(self, step: Step) -> tuple[int, int]:
        """The first token that a step runs when nothing is due, and the one behind the last."""
        return step.start, self.response_length if self.after else step.end


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """Prefix attention: the prompt was read at the start. Exact if every step runs the whole response (refresh 1)."""

    model: Denoiser
    memory: Remembering
    known: KeyValues
    scope: Scope

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer

    def hidden(self, canvas: Canvas, step: Step, asked_BL: Tensor) -> Tensor:
        """(N, D)."""
        everything = (0, self.scope.response_length)
        begin, end = everything if self.scope.is_due(step) else self.scope.tokens(step)
        return _some(self.memory, self.known, canvas, asked_BL, begin, end)

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return self.model.logits(hidden_NW)

    def select(self, rows: Tensor) -> Self:
        """What is known of those rows."""
        return replace(self, known=self.known.select(rows))


@dataclass(kw_only=True)
class StaleCache:
    """Full attention, approximately: between two readings of everything, positions out of scope stay as they were."""

    model: Denoiser
    memory: Remembering
    features_BND: Features | None
    scope: Scope
    known: KeyValues | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer

    def hidden(self, canvas: Canvas, step: Step, asked_BL: Tensor) -> Tensor:
        """(N, D)."""
        if self.known is not None and not self.scope.is_due(step):
            return _some(self.memory, self.known, canvas, asked_BL, *self.scope.tokens(step))
        self.known = None  # two of them may be more than there is room for
        hidden_BLD, self.known = self.memory.remember(
            canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND, prompt_BL=canvas.prompt()
        )
        return hidden_BLD[asked_BL]

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return self.model.logits(hidden_NW)

    def select(self, rows: Tensor) -> Self:
        """What is known of those rows."""
        features_BND = None if self.features_BND is None else self.features_BND[rows]
        return replace(self, features_BND=features_BND, known=None if self.known is None else self.known.select(rows))


def _some(memory: Remembering, known: KeyValues, canvas: Canvas, asked_BL: Tensor, begin: int, end: int) -> Tensor:
    """(N, D): the response's tokens [begin, end) are run, among which are all that are asked for."""
    hidden_BAD = memory.reread(canvas.ids_BL, known, offset_B=canvas.offset_B, begin=begin, end=end)
    columns_BA = canvas.offset_B[:, None] + torch.arange(begin, end, device=asked_BL.device)
    return hidden_BAD[asked_BL.gather(1, columns_BA)]


@torch.inference_mode()
def reader_for(
    model: Denoiser, canvas: Canvas, settings: DecodeSettings, *, features_BND: Features | None, response_length: int
) -> Reader:
    """The exact reader, or the approximate one that `settings` name. With prefix attention the prompt is read here.

    Raises:
        ConfigError: if the model cannot keep keys and values, and is asked to.
    """
    approximate = settings.cache != "none"
    blind = model.prompt_attention == "prefix"
    if not (approximate or blind):
        return Whole(model=model, features_BND=features_BND)
    if not isinstance(model, RememberingDenoiser):
        raise ConfigError(f"{type(model).__name__} keeps no keys and values: decode it without cache=")
    memory = model.remembering()
    refresh = settings.refresh if approximate else 1
    scope = Scope(response_length=response_length, refresh=refresh, after=settings.cache == "prefix")
    if not blind:
        return StaleCache(model=model, memory=memory, features_BND=features_BND, scope=scope)
    known = memory.remember_prompt(
        canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=features_BND, prompt_BL=canvas.prompt()
    )
    return PromptCache(model=model, memory=memory, known=known, scope=scope)

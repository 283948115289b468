"""Readers that keep keys and values between the steps, and the choice of a reader.

With prefix attention the prompt is read once and nothing is approximated. With full attention whatever is kept is
stale, for what it attended to has changed: an approximation, unless everything is read again in every step.

Shapes: B rows, L tokens, A tokens that are run, N positions that are asked for, D hidden size, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from core.decoding.reading import Looks, Reader, Whole
from core.decoding.state import Canvas, Step
from core.errors import ConfigError
from core.models.denoiser import Denoiser, Features
from core.models.key_values import KeyValues, Remembering, RememberingDenoiser


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What may be stale in a step: nothing, what is before its block (prefix), or all outside of it (dual).

    Everything is read again when a block begins, and then every `refresh` steps. The extra steps are a block, the whole
    response.
    """

    cache: Literal["none", "prefix", "dual"] = "none"
    refresh: int = 1

    def reader(self, model: Denoiser, features_BND: Features | None, *, response_length: int) -> Reader:
        """For these images' rows. Raises ConfigError if the model cannot keep keys and values, and has to."""
        blind = model.prompt_attention == "prefix"
        if self.cache == "none" and not blind:
            return Whole(model=model, features_BND=features_BND)
        if not isinstance(model, RememberingDenoiser):
            raise ConfigError(f"{type(model).__name__} keeps no keys and values: decode it without cache=")
        kind = PromptCache if blind else StaleCache
        return kind(
            model=model,
            memory=model.remembering(),
            features_BND=features_BND,
            keeping=self,
            response_length=response_length,
        )

    def is_due(self, step: Step, last: Step | None) -> bool:
        """Is everything to be read again, if that was done in the step `last`? `refresh` 1: always."""
        if last is None or (step.start, step.extra) != (last.start, last.extra):
            return True
        return self.cache == "none" or step.index - last.index >= self.refresh

    def tokens(self, step: Step, response_length: int) -> tuple[int, int]:
        """The first token of the response that is run when nothing else is due, and the one behind the last."""
        return step.start, step.end if self.cache == "dual" else response_length


@dataclass(kw_only=True)
class StaleCache(Looks):
    """Full attention, approximately: between two readings of everything, positions out of scope stay as they were.

    last: the step of the newest reading; newest: the newest step. A row's tokens do not depend on the batch: `known`
    follows the rows.
    """

    memory: Remembering
    keeping: Keeping
    response_length: int
    known: KeyValues | None = None
    last: Step | None = None
    newest: Step | None = None

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
        self.arrange(canvas)
        self.newest = step
        if self.known is not None and not self.keeping.is_due(step, self.last):
            begin, end = self.keeping.tokens(step, self.response_length)
            return _some(self.memory, self.known, canvas, asked_N, begin, end)
        self.known, self.last = None, step  # two of them may be more than there is room for
        hidden_BLD, self.known = self.memory.remember(
            canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND, prompt_BL=canvas.prompt()
        )
        return hidden_BLD.flatten(0, 1)[asked_N]

    def repeats(self) -> bool:
        """After a reading of everything: until then, what is kept may be of other tokens than the row's."""
        return self.last is self.newest

    def select(self, rows: Tensor) -> Self:
        """Those rows' images, and what is known of the rows."""
        known = None if self.known is None else self.known.select(rows)
        return replace(super().select(rows), known=known)


@dataclass(kw_only=True)
class PromptCache(StaleCache):
    """Prefix attention: the prompt is read in the first step and never again, and everything else is the response.

    Exact, unless a part of the response is kept, too.
    """

    def repeats(self) -> bool:
        """In an extra step, which runs the whole response, or after that was done."""
        return super().repeats() or (self.newest is not None and self.newest.extra)

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
        self.newest = step
        if self.known is None:
            self.known = self.memory.remember_prompt(
                canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND, prompt_BL=canvas.prompt()
            )
        if self.keeping.is_due(step, self.last):
            self.last = step
            return _some(self.memory, self.known, canvas, asked_N, 0, self.response_length)
        begin, end = self.keeping.tokens(step, self.response_length)
        return _some(self.memory, self.known, canvas, asked_N, begin, end)


def _some(memory: Remembering, known: KeyValues, canvas: Canvas, asked_N: Tensor, begin: int, end: int) -> Tensor:
    """(N, D): the response's tokens [begin, end) are run, among which are all that are asked for."""
    hidden_BAD = memory.reread(canvas.ids_BL, known, offset_B=canvas.offset_B, begin=begin, end=end)
    width = canvas.ids_BL.shape[1]
    row_N = asked_N // width
    return hidden_BAD[row_N, asked_N % width - canvas.offset_B[row_N] - begin]

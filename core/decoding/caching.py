"""Readers that keep keys and values between the steps, and the choice of a reader.

With prefix attention the prompt is read once and nothing is approximated. With full attention whatever is kept is
stale, for what it attended to has changed: an approximation, unless everything is read again in every step.

Shapes: B rows, L tokens, A tokens that are run, N positions that are asked for, D hidden size, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from core.decoding.reading import Looks, Whole
from core.decoding.state import Canvas, Step
from core.errors import ConfigError
from core.models.denoiser import Denoiser, Features
from core.models.key_values import KeyValues, Remembering, RememberingDenoiser
from core.models.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What may be stale in a step: nothing, what is before its block (prefix), or all outside of it (dual).

    Everything is read again when a block begins, and then every `refresh` steps. The extra steps are a block, the whole
    response.
    """

    cache: Literal["none", "prefix", "dual"] = "none"
    refresh: int = 1

    def reader(self, model: Denoiser, features_BND: Features | None, *, response_length: int) -> Looks:
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
    goes with the rows, and is nowhere else.
    """

    memory: Remembering
    keeping: Keeping
    response_length: int
    known: KeyValues | None = None
    last: Step | None = None
    newest: Step | None = None

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
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

    def select(self, rows: Rows) -> Self:
        """Those rows' images, and what is known of them. The next block reads everything again."""
        known, self.known = self.known, None
        return replace(super().select(rows), known=None if known is None else known.select(rows))


@dataclass(kw_only=True)
class PromptCache(StaleCache):
    """Prefix attention: the prompt is read in the first step and never again, and everything else is the response.

    Exact, unless a part of the response is kept, too. is_lent: rows that stayed had the use of `known`.
    """

    is_lent: bool = False

    def repeats(self) -> bool:
        """After a look that ran the whole response: with a suffix, not every extra step does."""
        return self.newest is not None and self._tokens(self.newest) == (0, self.response_length)

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
        known = self._known(canvas)
        self.newest = step
        if self.keeping.is_due(step, self.last):
            self.last = step
        return _some(self.memory, known, canvas, asked_N, *self._tokens(step))

    def _tokens(self, step: Step) -> tuple[int, int]:
        """See `Keeping.tokens`; all of them if that is due in this step."""
        return (0, self.response_length) if step is self.last else self.keeping.tokens(step, self.response_length)

    def _known(self, canvas: Canvas) -> KeyValues:
        """Of all rows of this reader, each in its place."""
        if self.known is None:
            self.known = self.memory.remember_prompt(
                canvas.ids_BL,
                valid_BL=canvas.valid_BL,
                features_BND=self.features_BND,
                prompt_BL=canvas.prompt(),
                response_length=self.response_length,
            )
            self.features_BND = None  # never looked at again
        if self.is_lent:
            self.known.restore()
            self.is_lent = False
        return self.known

    def select(self, rows: Rows) -> Self:
        """What is known of those rows; this reader has it back when the next block begins."""
        if self.known is None:
            return super().select(rows)
        if self.is_lent:
            self.known.restore()
        self.is_lent = True
        return replace(self, known=self.known.select(rows), is_lent=False)


def _some(memory: Remembering, known: KeyValues, canvas: Canvas, asked_N: Tensor, begin: int, end: int) -> Tensor:
    """(N, D): the response's tokens [begin, end) are run, among which are all that are asked for."""
    hidden_BAD = memory.reread(canvas.ids_BL, known, offset_B=canvas.offset_B, begin=begin, end=end)
    width = canvas.ids_BL.shape[1]
    row_N = asked_N // width
    return hidden_BAD[row_N, asked_N % width - canvas.offset_B[row_N] - begin]

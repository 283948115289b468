"""How a step looks at the canvas: which forwards a model runs, and what the head then scores.

Shapes: B rows, L tokens, N positions that are asked for, D hidden size, W what a position needs to be scored.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.state import Canvas, Step
from core.models.denoiser import Denoiser, Features


class Reader(Protocol):
    """A model, the images of the rows, and whatever is kept between the steps."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        ...

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, W): what `logits` needs of the positions `asked_N`, ascending indices into (B x L). One look a step.

        They are indices, not a mask, because picking by a mask waits for the device.
        """
        ...

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """Scores of the vocabulary, (N, V), for any of the positions."""
        ...

    def select(self, rows: Tensor) -> Self:
        """For some of the rows; `rows` is an index tensor on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Every step is a forward of the whole canvas. features_BND: see core.models.denoiser; None without images."""

    model: Denoiser
    features_BND: Features | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
        del step
        hidden_BLD = self.model.hidden(
            canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND, prompt_BL=canvas.prompt()
        )
        return hidden_BLD.flatten(0, 1)[asked_N]

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return self.model.logits(hidden_NW)

    def select(self, rows: Tensor) -> Self:
        """Those rows' images."""
        return self if self.features_BND is None else replace(self, features_BND=self.features_BND[rows])

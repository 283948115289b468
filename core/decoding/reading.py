"""How a step looks at the canvas: which forwards a model runs, and what the head then scores.

Shapes: B rows, L tokens, N positions that are asked for, D hidden size, W what a position needs to be scored.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.state import Canvas, Step
from core.models.denoiser import Denoiser, Features, arranged
from core.models.rows import Rows
from core.token_losses import LinearHead


class Reader(Protocol):
    """A model, the images of the rows, and whatever is kept between the steps."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        ...

    def arrange(self, canvas: Canvas) -> None:
        """Before the first look, once: nothing that a decoding does moves a prompt, its images or a response."""
        ...

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, W): what `logits` needs of the positions `asked_N`, ascending indices into (B x L). One look a step.

        They are indices, not a mask, because picking by a mask waits for the device.
        """
        ...

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """Scores of the vocabulary, (N, V), for any of the positions. They hold until the next call."""
        ...

    def repeats(self) -> bool:
        """Whether a row that the newest look left unchanged would be left so by every later look of its block."""
        ...

    def select(self, rows: Rows) -> Self:
        """For some of the rows, until the block ends; of this reader, no look until then."""
        ...


@runtime_checkable
class LinearlyScoring(Denoiser, Protocol):
    """A denoiser that may have a head of one linear layer."""

    def linear_head(self) -> LinearHead | None:
        """What computes `logits`; None: something else does."""
        ...


@dataclass(kw_only=True)
class Looks(ABC):
    """What all readers of one model share. features_BND: see core.models.denoiser; None without images.

    spare: on a CPU, memory for scores.
    """

    model: Denoiser
    features_BND: Features | None = None
    spare_NV: Tensor | None = None

    @abstractmethod
    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """See `Reader`."""

    @abstractmethod
    def repeats(self) -> bool:
        """See `Reader`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer

    def arrange(self, canvas: Canvas) -> None:
        """Ask the device where text and images go."""
        self.features_BND = arranged(
            self.model, canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND
        )

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        head = self.model.linear_head() if isinstance(self.model, LinearlyScoring) else None
        if head is None or hidden_NW.device.type != "cpu" or head.weight_VD.device != hidden_NW.device:
            return self.model.logits(hidden_NW)
        if self.spare_NV is None or len(self.spare_NV) < len(hidden_NW):
            self.spare_NV = hidden_NW.new_empty(len(hidden_NW), len(head.weight_VD))
        return head.scores_into(self.spare_NV[: len(hidden_NW)], hidden_NW)

    def select(self, rows: Rows) -> Self:
        """Those rows' images."""
        return replace(self, features_BND=rows.of(self.features_BND))


@dataclass(kw_only=True)
class Whole(Looks):
    """Every step is a forward of the whole canvas."""

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, D)."""
        del step
        hidden_BLD = self.model.hidden(
            canvas.ids_BL, valid_BL=canvas.valid_BL, features_BND=self.features_BND, prompt_BL=canvas.prompt()
        )
        return hidden_BLD.flatten(0, 1)[asked_N]

    def repeats(self) -> bool:
        """Always: a look depends on nothing but the row."""
        return True

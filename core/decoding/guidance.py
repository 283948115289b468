"""Classifier-free guidance: a second look that does not see the prompt.

Shapes: B rows, L tokens, N positions that are asked for, D hidden size, W = 2 D, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.reading import Looks
from core.decoding.state import Canvas, Step, mask_token
from core.models.denoiser import TrainableDenoiser
from core.models.merging import Arrangement
from core.models.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Guided:
    """logits = blind + (scale + 1) (seen - blind), at the price of two forwards a step.

    The blind look has a mask wherever none was at the start: in the prompt and its images, in what was given and in the
    padding, as published. `blind` is given no features: of images it sees as many masks as they have, and nothing of
    images that stand outside of the text.
    """

    seen: Looks
    blind: Looks
    scale: float

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.seen.tokenizer

    def arrange(self, canvas: Canvas) -> None:
        """What is not seen stands where that stands which is: nothing more is asked of the device."""
        self.seen.arrange(canvas)
        seen = self.seen.features_BND
        if isinstance(seen, Arrangement):
            embeddings = cast(TrainableDenoiser, self.seen.model).get_input_embeddings()
            self.blind.features_BND = seen.filled_with(embeddings.weight[mask_token(self)].detach())

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, 2 D): seen, then blind."""
        shown_BL = canvas.editable_BL & (canvas.position() >= canvas.given)
        blind = replace(canvas, ids_BL=canvas.ids_BL.masked_fill(~shown_BL, mask_token(self)))
        seen_ND = self.seen.hidden(canvas, step, asked_N)
        return torch.cat([seen_ND, self.blind.hidden(blind, step, asked_N)], dim=1)

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, 2 D) -> (N, V)."""
        seen_ND, blind_ND = hidden_NW.chunk(2, dim=1)
        blind_NV = self.blind.logits(blind_ND).float()
        return blind_NV.lerp_(self.seen.logits(seen_ND).float(), self.scale + 1)

    def repeats(self) -> bool:
        """If both looks do."""
        return self.seen.repeats() and self.blind.repeats()

    def select(self, rows: Rows) -> Self:
        """Those rows, in both looks."""
        return replace(self, seen=self.seen.select(rows), blind=self.blind.select(rows))

"""Classifier-free guidance: a second look that does not see the prompt.

Shapes: B rows, L tokens, N positions that are asked for, D hidden size, F image features.
"""

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.reading import Reader, Whole
from core.decoding.state import Canvas, Step, mask_token
from core.models.denoiser import Denoiser, Features, TrainableDenoiser
from core.models.merging import ImageFeatures
from core.models.special_tokens import image_placeholder


@dataclass(frozen=True, kw_only=True)
class Guided:
    """logits = blind + (scale + 1) (seen - blind), at the price of two forwards a step.

    The blind look has a mask wherever none was at the start: in the prompt and its images, in what was given and in the
    padding, as published.
    """

    seen: Reader
    blind: Whole
    scale: float

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.seen.tokenizer

    def hidden(self, canvas: Canvas, step: Step, asked_N: Tensor) -> Tensor:
        """(N, 2 D): seen, then blind."""
        shown_BL = canvas.editable_BL & (canvas.position() >= canvas.given)
        placeholder = image_placeholder(self.tokenizer)
        if self.blind.features_BND is not None and placeholder is not None:
            shown_BL = shown_BL | (canvas.ids_BL == placeholder)  # its features are masks
        blind = replace(canvas, ids_BL=canvas.ids_BL.masked_fill(~shown_BL, mask_token(self)))
        self.blind.arrange(blind)  # which waits for the device: before the first forward
        seen_ND = self.seen.hidden(canvas, step, asked_N)
        return torch.cat([seen_ND, self.blind.hidden(blind, step, asked_N)], dim=1)

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """(N, 2 D) -> (N, V)."""
        seen_ND, blind_ND = hidden_NW.chunk(2, dim=1)
        blind_NV = self.blind.logits(blind_ND).float()
        return blind_NV.lerp_(self.seen.logits(seen_ND).float(), self.scale + 1)

    def repeats(self) -> bool:
        """As what is seen: the blind look always does."""
        return self.seen.repeats()

    def select(self, rows: Tensor) -> Self:
        """Those rows, in both looks."""
        return replace(self, seen=self.seen.select(rows), blind=self.blind.select(rows))


def blind_look(model: Denoiser, features_BND: Features | None) -> Whole:
    """What the blind look sees of the images: as many masks as they have features; nothing of other models' images."""
    if not isinstance(features_BND, ImageFeatures):
        return Whole(model=model)
    embeddings = cast(TrainableDenoiser, model).get_input_embeddings()
    mask_D = embeddings.weight[mask_token(model)].detach()
    values_FD = mask_D.to(features_BND.values_FD).expand_as(features_BND.values_FD)
    return Whole(model=model, features_BND=replace(features_BND, values_FD=values_FD))

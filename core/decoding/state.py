"""What a step of decoding sees, and the one place that changes a token.

Shapes: B rows, L tokens of prompt, response and padding together, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward of the plan: the part [start, end) of the response is in scope, `quota` masks are to be revealed.

    `index` counts over the whole decoding, `local` within the block of `steps` steps. quota 0: an extra step.
    """

    index: int
    start: int
    end: int
    quota: int
    local: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Rows under decoding: prompt, response, then padding (as in training, so that positions agree).

    ids_BL int64; valid_BL False at padding; editable_BL True at the response positions; offset_B index of the first
    response token. Whether a token is masked is read from ids_BL and stored nowhere.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    editable_BL: Tensor
    offset_B: Tensor

    def prompt(self) -> Tensor:
        """(B, L) bool: the positions of the prompt."""
        return self.valid_BL & ~self.editable_BL

    def select(self, rows: Tensor) -> "Canvas":
        """The canvas of some rows; `rows` is a bool or index tensor."""
        return Canvas(
            ids_BL=self.ids_BL[rows],
            valid_BL=self.valid_BL[rows],
            editable_BL=self.editable_BL[rows],
            offset_B=self.offset_B[rows],
        )

    def scope(self, step: Step) -> Tensor:
        """(B, L) bool: the editable positions of the step's part of the response."""
        position_BL = torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device) - self.offset_B[:, None]
        return self.editable_BL & (position_BL >= step.start) & (position_BL < step.end)

    def responses(self, response_length: int) -> Tensor:
        """(B, response_length) ids of the responses."""
        columns = torch.arange(response_length, device=self.ids_BL.device)
        return self.ids_BL.gather(1, self.offset_B[:, None] + columns)


class HasTokenizer(Protocol):
    """A model, or what reads with one."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With mask_token_id set."""
        ...


def mask_token(model: HasTokenizer) -> int:
    """The id of the mask."""
    return int(model.tokenizer.mask_token_id)


def blank_canvas(
    prompts: Sequence[Sequence[int]], *, response_length: int, mask_id: int, pad_id: int, device: torch.device
) -> Canvas:
    """The start of decoding: every prompt followed by `response_length` masks, padded at the end."""
    starts = [len(prompt) for prompt in prompts]
    width = max(starts) + response_length
    rows = [
        [*prompt, *[mask_id] * response_length, *[pad_id] * (width - len(prompt) - response_length)]
        for prompt in prompts
    ]
    offset_B = torch.tensor(starts, device=device)
    position_BL = torch.arange(width, device=device) - offset_B[:, None]
    return Canvas(
        ids_BL=torch.tensor(rows, dtype=torch.int64, device=device),
        valid_BL=position_BL < response_length,
        editable_BL=(position_BL >= 0) & (position_BL < response_length),
        offset_B=offset_B,
    )


@dataclass(frozen=True, kw_only=True)
class View:
    """One step as schedule and policy see it; all tensors (B, L).

    ids: present tokens. masked, visible: positions in scope that are masked or not, at the start of the step.
    predicted: argmax (never the mask or padding) where the model was asked, the present token elsewhere.
    confidence: softmax probability of `predicted`; held: of the present token; both 0 where the model was not asked.
    """

    step: Step
    ids_BL: Tensor
    masked_BL: Tensor
    visible_BL: Tensor
    predicted_BL: Tensor
    confidence_BL: Tensor
    held_BL: Tensor


def apply(
    ids_BL: Tensor, *, scope_BL: Tensor, mask_id: int, reveal_BL: Tensor, predicted_BL: Tensor, next_BL: Tensor
) -> Tensor:
    """New ids after one step. Whatever schedule and policy ask for:

    only masks are revealed, only visible positions follow the policy, and nothing outside `scope_BL` (the editable
    positions of the block; never the prompt) changes. What is a mask is read from `ids_BL`.

    Args:
        reveal_BL: positions the schedule reveals: they take `predicted_BL`.
        next_BL: the token each visible position shall hold: its own = keep, the mask = re-mask, another = write.
    """
    masked_BL = ids_BL == mask_id
    revealed_BL = torch.where(scope_BL & masked_BL & reveal_BL, predicted_BL, ids_BL)
    return torch.where(scope_BL & ~masked_BL, next_BL, revealed_BL)

"""What a step of decoding sees, and the one place that changes a token.

Shapes: B rows, L tokens of prompt, response and padding together, R tokens of a response, K kept rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward of the plan: the part [start, end) of the response is in scope, `quota` masks are to be revealed.

    `index` counts over the whole decoding, `local` within the block of `steps` steps. extra: a step after the plan of
    revealing, with the whole response in scope. masked: masks in scope of every row before the step, where the plan
    knows it; None where it depends on the row.
    """

    index: int
    start: int
    end: int
    quota: int
    local: int
    steps: int
    extra: bool = False
    masked: int | None = None


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Rows under decoding: prompt, response, then padding (as in training, so that positions agree).

    ids_BL int64; valid_BL False at padding; editable_BL True at the response positions that may change; offset_B index
    of the first response token; stop_B length of the response that counts, less than R where a stop word begins there;
    stream_B int64 key of each row's random numbers. given, suffix: tokens at the two ends of every response that the
    user wrote: the first ones may be revised, the last ones are outside `editable_BL`. Whether a token is masked is
    read from ids_BL and stored nowhere.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    editable_BL: Tensor
    offset_B: Tensor
    stop_B: Tensor
    stream_B: Tensor
    given: int = 0
    suffix: int = 0

    def prompt(self) -> Tensor:
        """(B, L) bool: the positions of the prompt."""
        return self.valid_BL & (self.position() < 0)

    def select(self, rows: Tensor) -> "Canvas":
        """The canvas of some rows; `rows` is a bool or index tensor."""
        return replace(
            self,
            ids_BL=self.ids_BL[rows],
            valid_BL=self.valid_BL[rows],
            editable_BL=self.editable_BL[rows],
            offset_B=self.offset_B[rows],
            stop_B=self.stop_B[rows],
            stream_B=self.stream_B[rows],
        )

    def position(self) -> Tensor:
        """(B, L) index of each token within its row's response; negative in the prompt."""
        return torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device) - self.offset_B[:, None]

    def scope(self, step: Step) -> Tensor:
        """(B, L) bool: the editable positions of the step's part of the response."""
        position_BL = self.position()
        return self.editable_BL & (position_BL >= step.start) & (position_BL < step.end)

    def masked(self, step: Step, mask_id: int) -> Tensor:
        """(B, L) bool: the masks that the step may reveal: in scope, and before a stop word."""
        return self.scope(step) & (self.ids_BL == mask_id) & (self.position() < self.stop_B[:, None])

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
    prompts: Sequence[Sequence[int]],
    *,
    response_length: int,
    mask_id: int,
    pad_id: int,
    device: torch.device,
    beginning: Sequence[int] = (),
    suffix: Sequence[int] = (),
    streams: Sequence[int] | None = None,
) -> Canvas:
    """The start of decoding: every prompt followed by `response_length` masks, padded at the end.

    Args:
        beginning: ids that every response starts with instead of masks; a policy may revise them.
        suffix: ids that every response ends with; they stay.
        streams: a 64-bit key for each row's random numbers (see core.seeds); None: 0 for each.

    Raises:
        InputError: if nothing of the response is left to decode, or a mask is among what is given.
    """
    masks = response_length - len(beginning) - len(suffix)
    if masks < 1 or mask_id in beginning or mask_id in suffix:
        raise InputError(
            f"a response of {response_length} tokens with {len(beginning)} given at its beginning and {len(suffix)} at "
            "its end: at least one must be left to decode, and none that is given may be the mask"
        )
    starts = [len(prompt) for prompt in prompts]
    width = max(starts) + response_length
    response = [*beginning, *[mask_id] * masks, *suffix]
    rows = [[*prompt, *response, *[pad_id] * (width - len(prompt) - response_length)] for prompt in prompts]
    offset_B = torch.tensor(starts, device=device)
    position_BL = torch.arange(width, device=device) - offset_B[:, None]
    keys = [key - (1 << 64) if key >= 1 << 63 else key for key in streams or [0] * len(starts)]
    return Canvas(
        ids_BL=torch.tensor(rows, dtype=torch.int64, device=device),
        valid_BL=position_BL < response_length,
        editable_BL=(position_BL >= 0) & (position_BL < response_length - len(suffix)),
        offset_B=offset_B,
        stop_B=torch.full_like(offset_B, response_length),
        stream_B=torch.tensor(keys, dtype=torch.int64, device=device),
        given=len(beginning),
        suffix=len(suffix),
    )


@dataclass(frozen=True, kw_only=True)
class View:
    """One step as schedule and policy see it; all tensors (B, L).

    masked, visible: positions in scope that may be revealed, or are no mask, at the start of the step. predicted: what
    the model would write where it was asked, the present token elsewhere. confidence: how sure it is (as a rule the
    softmax probability of `predicted`); held: probability of the present token; both 0 where the model was not asked.
    """

    step: Step
    canvas: Canvas
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

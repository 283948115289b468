"""The decoding loop: forward -> schedule -> policy -> apply -> trace.

Shapes: B rows, L tokens (prompt, response, padding), R tokens of a response, N positions that may change, D width,
V vocabulary.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from core.decoding.policies import Freeze, Policy, Refine
from core.decoding.reading import Reader
from core.decoding.schedule import ConfidenceSchedule, Schedule
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas, Step, View, apply, mask_token
from core.decoding.trace import Recorder
from core.errors import InputError

# Positions a call of the lm_head: at a vocabulary of 126k, 2048 float32 rows are 1 GB.
_HEAD_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What `decode` made of a canvas.

    token_ids_BR: int64, on the CPU. nfe: forwards of the plan, the same for every row. forwards_B: forwards that each
    row really took part in; fewer than nfe if it stopped changing during the extra steps.
    """

    token_ids_BR: Tensor
    nfe: int
    forwards_B: Tensor


def strategies(settings: DecodeSettings) -> tuple[Schedule, Policy]:
    """The schedule and the policy that the settings name."""
    schedule = ConfidenceSchedule(
        tokens_per_step=settings.tokens_per_step,
        extra_steps=settings.extra_steps,
        block_length=settings.block_length,
    )
    if settings.policy == "freeze":
        return schedule, Freeze()
    return schedule, Refine(start=settings.start, topk=settings.topk, margin=settings.margin)


@torch.inference_mode()
def decode(
    reader: Reader,
    canvas: Canvas,
    *,
    response_length: int,
    schedule: Schedule,
    policy: Policy,
    recorder: Recorder | None = None,
) -> Decoded:
    """Decode every row of `canvas` by the plan of `schedule`.

    A row that an extra step leaves unchanged is at a fixed point, because a step depends on nothing but the row: it
    leaves the batch, and its further forwards count in `nfe` but are not computed.

    Raises:
        InputError: if the model's scores are not numbers; looked at once, at the end.
    """
    plan = schedule.plan(response_length)
    final_BR = canvas.responses(response_length)
    rows_B = torch.arange(len(final_BR), device=final_BR.device)
    forwards_B, broken = torch.zeros_like(rows_B), torch.zeros((), dtype=torch.bool, device=final_BR.device)
    for step in plan:
        forwards_B[rows_B] += 1
        view = _look(reader, canvas, step, policy)
        broken |= view.confidence_BL.isnan().any()
        after = dataclasses.replace(canvas, ids_BL=_next(reader, canvas, view, schedule, policy))
        if recorder is not None:
            recorder.record(view, after, rows_B)
        final_BR[rows_B] = after.responses(response_length)
        canvas, moving_B = after, (after.ids_BL != canvas.ids_BL).any(dim=1)
        if step.quota == 0 and not bool(moving_B.all()):
            canvas, rows_B, reader = canvas.select(moving_B), rows_B[moving_B], reader.select(moving_B)
            if len(rows_B) == 0:
                break
    if bool(broken):
        raise InputError(
            "the model's scores are not numbers (NaN or infinite): its weights are damaged, or too large for its "
            "precision. Load it in bfloat16 or float32, or take an earlier checkpoint"
        )
    return Decoded(token_ids_BR=final_BR.cpu(), nfe=len(plan), forwards_B=forwards_B.cpu())


def _next(reader: Reader, canvas: Canvas, view: View, schedule: Schedule, policy: Policy) -> Tensor:
    """(B, L) ids after the step."""
    return apply(
        canvas.ids_BL,
        scope_BL=canvas.scope(view.step),
        mask_id=mask_token(reader),
        reveal_BL=schedule.choose(view),
        predicted_BL=view.predicted_BL,
        next_BL=policy.act(view),
    )


def _look(reader: Reader, canvas: Canvas, step: Step, policy: Policy) -> View:
    """One forward; the lm_head only where a token may change."""
    ids_BL, scope_BL = canvas.ids_BL, canvas.scope(step)
    is_mask_BL = ids_BL == mask_token(reader)
    masked_BL, visible_BL = scope_BL & is_mask_BL, scope_BL & ~is_mask_BL
    asked_BL = scope_BL if policy.looks(step) else masked_BL
    hidden_NW = reader.hidden(canvas, step, asked_BL)
    predicted_N, confidence_N, held_N = _predict(reader, hidden_NW, ids_BL[asked_BL])
    predicted_BL, zeros_BL = ids_BL.clone(), torch.zeros(ids_BL.shape, device=ids_BL.device)
    predicted_BL[asked_BL] = predicted_N
    return View(
        step=step,
        ids_BL=ids_BL,
        masked_BL=masked_BL,
        visible_BL=visible_BL,
        predicted_BL=predicted_BL,
        confidence_BL=zeros_BL.masked_scatter(asked_BL, confidence_N),
        held_BL=zeros_BL.masked_scatter(asked_BL, held_N),
    )


def _predict(reader: Reader, hidden_NW: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Argmax, its probability and that of the present token, (N,) each, of the softmax over all ids but mask and pad.

    The probability is exp(max - logsumexp): no (N, V) softmax is made.
    """
    forbidden = forbidden_tokens(reader)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows_NW, present_N in zip(torch.split(hidden_NW, _HEAD_ROWS), torch.split(ids_N, _HEAD_ROWS), strict=True):
        logits_NV = reader.logits(rows_NW).float()
        logits_NV[:, forbidden] = -torch.inf
        best_N, argmax_N = logits_NV.max(dim=1)
        norm_N = logits_NV.logsumexp(dim=1)
        held_N = logits_NV.gather(1, present_N[:, None])[:, 0]
        parts.append((argmax_N, (best_N - norm_N).exp(), (held_N - norm_N).exp()))
    argmax, confidence, held = (torch.cat(column) for column in zip(*parts, strict=True))
    return argmax, confidence, held


def forbidden_tokens(reader: Reader) -> list[int]:
    """Ids that are never predicted: the mask and the padding, unless padding is also the end of text."""
    tokenizer = reader.tokenizer
    return sorted({tokenizer.mask_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id})

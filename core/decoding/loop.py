"""The decoding loop: forward -> scoring -> schedule -> policy -> apply -> trace.

A step waits for the device at most once, and only where a row may be done before the plan is: the number of positions
that are scored is known from the plan otherwise. What else there is to ask is asked before the first step.

Shapes: B rows, L tokens (prompt, response, padding), R tokens of a response, N positions that may change, K rows that
stay.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.decoding.noise import position_keys
from core.decoding.policies import Policy
from core.decoding.reading import Reader
from core.decoding.schedule import Schedule
from core.decoding.scoring import Scores, Scoring, joined
from core.decoding.state import Canvas, Step, View, apply, mask_token
from core.decoding.stopping import StopWords
from core.decoding.trace import Recorder
from core.errors import InputError
from core.interruption import check
from core.models.rows import Rows

# Positions a call of the lm_head: at a vocabulary of 126k, 512 float32 rows are 260 MB.
_HEAD_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What `decode` made of a canvas.

    token_ids_BR: int64, on the CPU. nfe_B: forwards that the answer takes: those of the plan, less what a row was
    done before. forwards_B: forwards that each row really took part in; fewer than nfe_B if it stopped changing
    during the extra steps.
    """

    token_ids_BR: Tensor
    nfe_B: Tensor
    forwards_B: Tensor


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows that take part in a step: their numbers in the whole batch, canvas and reader.

    masked: all masks that the step may reveal in them; None: the plan does not need it counted.
    """

    rows_B: Tensor
    canvas: Canvas
    reader: Reader
    masked: int | None = None

    def keep(self, count_B: Tensor) -> "_Part":
        """Without the rows that count 0, `masked` being the sum of the counts. Waits for the device."""
        counts: list[int] = count_B.tolist()
        kept = [row for row, count in enumerate(counts) if count]
        if len(kept) == len(counts):
            return replace(self, masked=sum(counts))
        kept_K = (count_B > 0).nonzero_static(size=len(kept))[:, 0]
        return _Part(
            rows_B=self.rows_B[kept_K],
            canvas=self.canvas.select(kept_K),
            reader=self.reader.select(Rows(numbers=tuple(kept), index_K=kept_K)),
            masked=sum(counts),
        )


@torch.inference_mode()
def decode(
    reader: Reader,
    canvas: Canvas,
    *,
    response_length: int,
    schedule: Schedule,
    policy: Policy,
    scoring: Scoring | None = None,
    stop: StopWords | None = None,
    recorder: Recorder | None = None,
) -> Decoded:
    """Decode every row of `canvas` by the plan of `schedule`.

    A row that has nothing left to reveal before its block ends sits out until the next. A row that an extra step leaves
    unchanged is at a fixed point, where a step depends on nothing but the row (see `Reader.repeats`): it leaves the
    batch, and its further forwards count in `nfe_B` but are not computed.

    Args:
        scoring: None: a Scoring that never writes the mask or the padding.

    Raises:
        InputError: if the model's scores are not numbers; looked at once, at the end.
        Interrupted: somebody called `core.interruption.interrupt`.
    """
    run = _Run(
        reader=reader,
        canvas=canvas,
        length=response_length,
        strategies=(schedule, policy, scoring or Scoring(unwritten=forbidden_tokens(reader.tokenizer)), stop),
        recorder=recorder,
    )
    reader.arrange(canvas)
    for step in schedule.plan(response_length - canvas.suffix, canvas.given):
        if schedule.reveals(step) or policy.looks(step):  # nothing else can change a token
            check()
            run.step(step)
    return run.result()


class _Run:
    """The state of one decoding."""

    def __init__(
        self,
        *,
        reader: Reader,
        canvas: Canvas,
        length: int,
        strategies: tuple[Schedule, Policy, Scoring, StopWords | None],
        recorder: Recorder | None,
    ) -> None:
        device = canvas.ids_BL.device
        self._schedule, self._policy, self._scoring, self._stop = strategies
        self._length, self._recorder = length, recorder
        self._mask = mask_token(reader)
        self._scorer = self._scoring.on(device)
        # whether masks in scope may be others than the plan says
        self._sure = self._stop is None and self._mask in self._scoring.unwritten
        rows_B = torch.arange(len(canvas.ids_BL), device=device)
        self._whole = self._part = _Part(rows_B=rows_B, canvas=canvas, reader=reader)
        self._block: tuple[int, bool] | None = None
        self._moved_B: Tensor | None = None
        self._nfe_B, self._forwards_B = torch.zeros_like(rows_B), torch.zeros_like(rows_B)
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        if recorder is not None:
            recorder.begin(canvas, length=length, mask_id=self._mask)

    def step(self, step: Step) -> None:
        """One forward of the rows that it can change."""
        part = self._part = self._taking_part(step)
        if step.extra:
            self._nfe_B += self._whole.canvas.stop_B >= self._length
        if len(part.rows_B) == 0:
            return
        self._forwards_B[part.rows_B] += 1
        if not step.extra:
            self._nfe_B[part.rows_B] += 1
        view = self._look(part, step)
        self._broken |= view.confidence_BL.isnan().any()
        after = replace(part.canvas, ids_BL=self._next(view))
        if self._stop is not None:
            after = self._stop.apply(after, mask_id=self._mask)
        if self._recorder is not None:
            self._recorder.record(view, after, part.rows_B)
        if step.extra and self._scoring.temperature == 0 and part.reader.repeats():
            self._moved_B = (after.ids_BL != part.canvas.ids_BL).any(dim=1)
        self._part = replace(part, canvas=after)
        whole = self._whole.canvas
        whole = replace(
            whole,
            ids_BL=whole.ids_BL.index_copy(0, part.rows_B, after.ids_BL),
            stop_B=whole.stop_B.index_copy(0, part.rows_B, after.stop_B),
        )
        self._whole = replace(self._whole, canvas=whole)

    def _taking_part(self, step: Step) -> _Part:
        """Everyone when a block begins; then those that the step can change, asked only where some may be done."""
        part, block = self._part, (step.start, step.extra)
        if block != self._block:
            part, self._block, self._moved_B = self._whole, block, None
        if step.extra:
            going_B = part.canvas.stop_B >= self._length
            moved_B, self._moved_B = self._moved_B, None
            if moved_B is not None:
                return part.keep(going_B & moved_B)
            return part if self._stop is None else part.keep(going_B)
        if step.masked is not None and self._sure:
            return replace(part, masked=step.masked * len(part.rows_B))
        return part.keep(part.canvas.masked(step, self._mask).sum(dim=1))

    def _look(self, part: _Part, step: Step) -> View:
        """One forward; the lm_head only where a token may change."""
        canvas = part.canvas
        masked_BL = canvas.masked(step, self._mask)
        if self._policy.looks(step):
            index_N = _everywhere(canvas, step)
        else:
            index_N = masked_BL.flatten().nonzero_static(size=part.masked or 0)[:, 0]
        hidden_NW = part.reader.hidden(canvas, step, index_N)
        scores = self._score(part.reader, canvas, step, index_N, hidden_NW)
        zeros_BL = torch.zeros(canvas.ids_BL.shape, device=canvas.ids_BL.device)

        def spread(into_BL: Tensor, values_N: Tensor) -> Tensor:
            return into_BL.flatten().index_copy(0, index_N, values_N).view_as(into_BL)

        return View(
            step=step,
            canvas=canvas,
            masked_BL=masked_BL,
            visible_BL=canvas.scope(step) & (canvas.ids_BL != self._mask),
            predicted_BL=spread(canvas.ids_BL, scores.token_N),
            confidence_BL=spread(zeros_BL, scores.confidence_N),
            held_BL=spread(zeros_BL, scores.held_N),
        )

    def _score(self, reader: Reader, canvas: Canvas, step: Step, index_N: Tensor, hidden_NW: Tensor) -> Scores:
        ids_N = canvas.ids_BL.flatten()[index_N]
        keys_N = position_keys(canvas, step).flatten()[index_N] if self._scoring.temperature > 0 else None
        parts: list[Scores] = []
        for start in range(0, max(len(ids_N), 1), _HEAD_ROWS):
            some = slice(start, start + _HEAD_ROWS)
            keys = None if keys_N is None else keys_N[some]
            parts.append(self._scorer.score(reader.logits(hidden_NW[some]), ids_N[some], keys))
        return joined(parts)

    def _next(self, view: View) -> Tensor:
        """(B, L) ids after the step."""
        return apply(
            view.canvas.ids_BL,
            scope_BL=view.canvas.scope(view.step),
            mask_id=self._mask,
            reveal_BL=self._schedule.choose(view),
            predicted_BL=view.predicted_BL,
            next_BL=self._policy.act(view),
        )

    def result(self) -> Decoded:
        """Raises InputError if a score was not a number."""
        if bool(self._broken):
            raise InputError(
                "the model's scores are not numbers (NaN or infinite): its weights are damaged, or too large for its "
                "precision. Load it in bfloat16 or float32, or take an earlier checkpoint"
            )
        return Decoded(
            token_ids_BR=self._whole.canvas.responses(self._length).cpu(),
            nfe_B=self._nfe_B.cpu(),
            forwards_B=self._forwards_B.cpu(),
        )


def _everywhere(canvas: Canvas, step: Step) -> Tensor:
    """Indices of all positions in scope, into the flattened canvas: as many in every row."""
    rows, width = canvas.ids_BL.shape
    device = canvas.ids_BL.device
    columns = canvas.offset_B[:, None] + torch.arange(step.start, step.end, device=device)
    return (columns + torch.arange(rows, device=device)[:, None] * width).flatten()


def forbidden_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that are never predicted: the mask and the padding, unless padding is also the end of text."""
    return tuple(sorted({tokenizer.mask_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}))

"""From the scores of the vocabulary to a token and how sure the model is of it.

Shapes: N positions, V vocabulary, K ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.decoding.noise import gumbel

_CACHED = 1 << 21
"""Scores worked on at once on a CPU, 8 MB: several passes over them then stay in the processor's cache, and there are
few of them: with four times as many, each begun on two cores by a thread that is not the main one, scoring a vocabulary
of 126,464 took twice the time."""
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Scores:
    """(N,) each: the token that the model would write, how sure it is, and the probability of the present token."""

    token_N: Tensor
    confidence_N: Tensor
    held_N: Tensor


def joined(parts: Sequence[Scores]) -> Scores:
    """One after another."""
    return Scores(
        token_N=torch.cat([part.token_N for part in parts]),
        confidence_N=torch.cat([part.confidence_N for part in parts]),
        held_N=torch.cat([part.held_N for part in parts]),
    )


class Measure(Protocol):
    """How sure the model is of a token."""

    def of(self, logits_NV: Tensor, chosen_N: Tensor, norm_N: Tensor) -> Tensor:
        """(N,) from scores (-inf: not counted), the chosen token's score, and the logarithm of the sum of exp."""
        ...


@dataclass(frozen=True, kw_only=True)
class Probability:
    """The softmax probability of the token (LLaDA; Dream's maskgit_plus)."""

    def of(self, logits_NV: Tensor, chosen_N: Tensor, norm_N: Tensor) -> Tensor:
        """In [0, 1]."""
        del logits_NV
        return (chosen_N - norm_N).exp()


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the likeliest token is above the second (Dream's topk_margin)."""

    def of(self, logits_NV: Tensor, chosen_N: Tensor, norm_N: Tensor) -> Tensor:
        """In [0, 1]."""
        del chosen_N
        best_N2 = (logits_NV.topk(2, dim=1).values - norm_N[:, None]).exp()
        return best_N2[:, 0] - best_N2[:, 1]


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The negative entropy of the softmax (Dream's entropy, with its 1e-10 in the logarithm)."""

    def of(self, logits_NV: Tensor, chosen_N: Tensor, norm_N: Tensor) -> Tensor:
        """At most 0."""
        del chosen_N
        p_NV = (logits_NV - norm_N[:, None]).exp()
        return (p_NV * (p_NV + 1e-10).log()).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The published heads' rules.

    suppress: ids that are never written and count nowhere, as if the vocabulary had none of them. unwritten: ids that
    are never written (the mask and the padding), but count in the softmax if `over_all`. late: ids that may be written
    but count nowhere, so that their own confidence is 0 and they are revealed last. temperature: of the Gumbel noise
    on the scores, which moves the choice and not the confidence.
    """

    measure: Measure = Probability()
    unwritten: tuple[int, ...]
    suppress: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    over_all: bool = False
    temperature: float = 0.0

    def on(self, device: torch.device) -> "Scorer":
        """Ready to score; the ids are brought to the device once."""
        first = self.suppress if self.over_all else sorted({*self.suppress, *self.unwritten})
        then = self.unwritten if self.over_all else ()

        def ids(some: tuple[int, ...] | list[int]) -> Tensor | None:
            return torch.tensor(some, dtype=torch.int64, device=device) if some else None

        return Scorer(scoring=self, never_K=ids(first), unwritten_K=ids(then), late_K=ids(self.late))


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A `Scoring` on a device. Nothing here waits for the device."""

    scoring: Scoring
    never_K: Tensor | None
    unwritten_K: Tensor | None
    late_K: Tensor | None

    def score(self, logits_NV: Tensor, ids_N: Tensor, keys_N: Tensor | None) -> Scores:
        """`logits_NV` is overwritten."""
        return joined(
            [
                self._part(logits_NV[part], ids_N[part], None if keys_N is None else keys_N[part])
                for part in _parts(logits_NV)
            ]
        )

    def _part(self, logits_NV: Tensor, ids_N: Tensor, keys_N: Tensor | None) -> Scores:
        """The probability is exp(score - logsumexp): no softmax is made."""
        logits_NV = logits_NV.float()
        _forbid(logits_NV, self.never_K)
        counted_NV = logits_NV.clone() if self.unwritten_K is not None else logits_NV
        _forbid(logits_NV, self.unwritten_K)
        if keys_N is None:
            best_N, token_N = _best(logits_NV)
        else:
            noise_NV = gumbel(keys_N, logits_NV.shape[1]) * self.scoring.temperature
            token_N = (logits_NV + noise_NV).argmax(dim=1)
        _forbid(counted_NV, self.late_K)
        if keys_N is not None or self.late_K is not None:
            best_N = counted_NV.gather(1, token_N[:, None])[:, 0]
        held_N = counted_NV.gather(1, ids_N[:, None])[:, 0]
        is_largest = self.unwritten_K is None and self.late_K is None and keys_N is None
        if is_largest and isinstance(self.scoring.measure, Probability):
            norm_N = _log_of_sum(counted_NV, best_N)
        else:
            norm_N = counted_NV.logsumexp(dim=1)
        confidence_N = self.scoring.measure.of(counted_NV, best_N, norm_N)
        return Scores(token_N=token_N, confidence_N=confidence_N, held_N=(held_N - norm_N).exp())


def _log_of_sum(logits_NV: Tensor, largest_N: Tensor) -> Tensor:
    """logsumexp to the bit, which need not look for the largest again, in place: `logits_NV` is lost.

    With new memory for the differences it took twice the time at a vocabulary of 126,464.
    """
    shift_N = largest_N.masked_fill(largest_N.isinf(), 0.0)
    return logits_NV.sub_(shift_N[:, None]).exp_().sum(dim=1).log_().add_(shift_N)


def _forbid(logits_NV: Tensor, ids_K: Tensor | None) -> None:
    if ids_K is not None:
        logits_NV.index_fill_(1, ids_K, -torch.inf)


def _best(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`logits_NV.max(dim=1)`, in a quarter of its time: first of blocks, by a reduction that needs no indices."""
    rows, vocabulary = logits_NV.shape
    main = vocabulary // _BLOCK * _BLOCK
    if main == 0:
        return logits_NV.max(dim=1)[:2]
    blocks_NCK = logits_NV[:, :main].view(rows, -1, _BLOCK)
    block_N = blocks_NCK.amax(dim=2).argmax(dim=1)
    within_NK = blocks_NCK.gather(1, block_N[:, None, None].expand(rows, 1, _BLOCK))[:, 0]
    best_N, token_N = within_NK.max(dim=1)
    token_N = token_N + block_N * _BLOCK
    if main == vocabulary:
        return best_N, token_N
    last_N, column_N = logits_NV[:, main:].max(dim=1)
    later_N = last_N > best_N
    return torch.where(later_N, last_N, best_N), torch.where(later_N, column_N + main, token_N)


def _parts(logits_NV: Tensor) -> Iterator[slice]:
    """On a CPU so many rows that they fit into its cache; elsewhere all of them."""
    rows, vocabulary = logits_NV.shape
    at_once = max(1, _CACHED // vocabulary) if logits_NV.device.type == "cpu" else max(1, rows)
    for start in range(0, max(rows, 1), at_once):
        yield slice(start, start + at_once)

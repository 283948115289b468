"""Cross-entropy of tokens from their hidden states: with the logits of all of them at once, or of a few at a time.

The logits of N tokens over a large vocabulary are most of a training step's memory: 4,096 tokens of LLaDA's 126,464
are 2 GB, and a plain cross-entropy holds them four times over. Where they would be large and the head is one linear
layer, the loss and its gradient are computed chunk by chunk, and no more than a chunk of logits ever exists.

`torch.nn.functional.linear_cross_entropy` does this too, but takes no weight for a token except through
`reduction="none"`, which computes the logits a second time in the backward pass, and it keeps no predictions; see the
benchmark of the training step for what each takes.

Shapes: N tokens, C tokens of a chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

_WHOLE_BYTES = 2**28
"""Logits in fp32 up to this size are computed at once, as they always were: to the bit."""
_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Of a chunk's logits in fp32: enough rows for a fast matrix product, few enough to stay near the caches of a CPU."""
_LEAST_ROWS = 64
"""Of a chunk, however large the vocabulary: the weight's gradient is read and written once a chunk."""


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """loss: sum(weight x cross-entropy), in fp32, with a graph. ce_N and correct_N (0 or 1) have none."""

    loss: Tensor
    ce_N: Tensor
    correct_N: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A head that is one linear layer: logits_NV = hidden_ND @ weight_VD.T + bias_V."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    @classmethod
    def of(cls, head: nn.Module) -> "LinearHead | None":
        """Of a plain nn.Linear; None for whatever else it may be, an adapter around a linear layer included."""
        if type(head) is nn.Linear:
            return cls(weight_VD=head.weight, bias_V=head.bias)
        return None

    def scores_into(self, out_NV: Tensor, hidden_ND: Tensor) -> Tensor:
        """`out_NV`, with the scores: new memory of that size would cost a page fault for every 4 KiB. No gradient."""
        return _linear(hidden_ND, self.weight_VD, self.bias_V, out_NV)


def token_losses(
    hidden_ND: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    *,
    logits: Callable[[Tensor], Tensor],
    head: LinearHead | None,
) -> TokenLosses:
    """The weighted cross-entropy of N tokens, with the gradient of `hidden_ND` and of the head.

    Args:
        hidden_ND: where each token is predicted.
        targets_N: what each should be.
        weights_N: what each weighs; nothing is differentiated by them.
        logits: (N, D) -> (N, V): what computes the scores where they fit in 256 MiB, or where `head` is None.
        head: what computes them otherwise, chunk by chunk: weights of the same function.
    """
    if head is None or 4 * len(hidden_ND) * len(head.weight_VD) <= _WHOLE_BYTES:
        return losses_of_logits(logits(hidden_ND), targets_N, weights_N)
    return _chunked(hidden_ND, targets_N, weights_N, head)


def losses_of_logits(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> TokenLosses:
    """The same from logits that are there."""
    ce_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    loss = (weights_N.float() * ce_N).sum()
    with torch.no_grad():
        correct_N = (logits_NV.argmax(dim=-1) == targets_N).float()
    return TokenLosses(loss=loss, ce_N=ce_N.detach(), correct_N=correct_N)


def chunk_rows(vocabulary: int, device: str) -> int:
    """C: tokens whose logits are computed at once."""
    return max(_LEAST_ROWS, _CHUNK_BYTES.get(device, _CHUNK_BYTES["cpu"]) // (4 * vocabulary))


def _chunked(hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, head: LinearHead) -> TokenLosses:
    weight_VD, bias_V = head.weight_VD, head.bias_V
    home, device = hidden_ND.device, weight_VD.device  # the head may have a device of its own
    hidden_ND = hidden_ND.to(device)
    cast = torch.is_autocast_enabled(device.type)  # which does not reach into an autograd function
    loss, ce_N, correct_N = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]  # torch's
        hidden_ND,
        weight_VD,
        bias_V,
        targets_N.to(device),
        weights_N.to(device).float(),
        chunk_rows(len(weight_VD), device.type),
        torch.get_autocast_dtype(device.type) if cast else hidden_ND.dtype,
        torch.is_grad_enabled(),
    )
    return TokenLosses(loss=loss.to(home), ce_N=ce_N.to(home), correct_N=correct_N.to(home))


class _ChunkedLoss(torch.autograd.Function):
    """The loss, and in the same pass its gradient: the backward pass only scales what the forward pass has found.

    d loss / d logits_NV = weights_N x (softmax - one-hot). The factor of a token is applied to the rows of D numbers on
    either side of it, not to those of V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        chunk: int,
        dtype: torch.dtype,
        trained: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.dtypes = tuple(None if given is None else given.dtype for given in (hidden_ND, weight_VD, bias_V))
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
        by_hidden, by_weight, by_bias = (trained and needed for needed in ctx.needs_input_grad[:3])
        grad_ND = torch.empty_like(hidden_ND) if by_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if by_weight else None
        grad_V = torch.zeros_like(weight_VD[:, 0], dtype=torch.float32) if by_bias else None
        ce_N, correct_N = torch.empty_like(weights_N), torch.empty_like(weights_N)
        logits = hidden_ND.new_empty(min(chunk, len(hidden_ND)), len(weight_VD))
        probabilities = torch.empty_like(logits, dtype=torch.float32)
        for part in (slice(first, first + chunk) for first in range(0, len(hidden_ND), chunk)):
            hidden_CD, targets_C1, weights_C1 = hidden_ND[part], targets_N[part, None], weights_N[part, None]
            logits_CV = _linear(hidden_CD, weight_VD, bias_V, logits[: len(hidden_CD)])
            residual_CV, ce_N[part], correct_N[part] = _scored(logits_CV, targets_C1, probabilities[: len(hidden_CD)])
            if grad_V is not None:
                grad_V.addmv_(residual_CV.T, weights_C1[:, 0])
            residual_CV = residual_CV.to(dtype)
            if grad_ND is not None:
                grad_ND[part] = (residual_CV @ weight_VD) * weights_C1
            if grad_VD is not None:
                _add_product(grad_VD, residual_CV.T, (hidden_CD * weights_C1).to(dtype))
        ctx.grads = (grad_ND, grad_VD, grad_V)
        ctx.mark_non_differentiable(ce_N, correct_N)
        return (weights_N * ce_N).sum(), ce_N, correct_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradient of a chunked loss can be taken once: it is not kept")
        grads, ctx.grads = ctx.grads, None
        pairs = zip(grads, ctx.dtypes, strict=True)
        scaled = (None if grad is None else grad.mul_(grad_loss).to(dtype) for grad, dtype in pairs)  # a copy is large
        return *scaled, None, None, None, None, None


def _linear(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> Tensor:
    """nn.functional.linear into memory that is there."""
    if bias_V is None:
        return torch.mm(hidden_CD, weight_VD.T, out=out_CV)
    return torch.addmm(bias_V, hidden_CD, weight_VD.T, out=out_CV)


def _scored(logits_CV: Tensor, targets_C1: Tensor, buffer_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax - one-hot (in `buffer_CV`), cross-entropy (C,) and whether the best token is the target (C,).

    The normaliser is read off the best token, whose probability is at least 1 / V: log p_target would underflow.
    """
    best_C1, predicted_C1 = logits_CV.max(dim=1, keepdim=True)
    target_C1 = logits_CV.gather(1, targets_C1)
    probabilities_CV = torch.softmax(logits_CV, dim=1, dtype=torch.float32, out=buffer_CV)
    ce_C1 = best_C1.float() - target_C1.float() - probabilities_CV.gather(1, predicted_C1).log()
    residual_CV = probabilities_CV.scatter_add_(1, targets_C1, torch.full_like(ce_C1, -1.0))
    return residual_CV, ce_C1[:, 0], (predicted_C1 == targets_C1)[:, 0].float()


def _add_product(total_VD: Tensor, residual_VC: Tensor, hidden_CD: Tensor) -> None:
    """total += residual @ hidden, summed over chunks in fp32."""
    if residual_VC.dtype == total_VD.dtype:
        total_VD.addmm_(residual_VC, hidden_CD)
    else:
        total_VD += residual_VC @ hidden_CD

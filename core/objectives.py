"""Pure losses: typed tensors in, (loss, metrics) out. Weights come with the batch (core.corruption.weights).

Shapes: N supervised tokens of a batch, V vocabulary, B rows, L tokens, R image regions.
Metrics are detached tensors without dimensions: turning them into numbers is a synchronisation, left to who logs them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from core.token_losses import TokenLosses, losses_of_logits
from data_contracts import TokenKind

__all__ = ["ObjectiveSettings", "denoising", "grounding", "token_weights", "weighed"]

Metrics = dict[str, Tensor]

_SUPERVISED = (TokenKind.MASK, TokenKind.SYNTAX, TokenKind.HALLUCINATION, TokenKind.CLEAN, TokenKind.MISTAKE)
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("max", 1.0))


def denoising(
    logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, kinds_N: Tensor, *, rows: int
) -> tuple[Tensor, Metrics]:
    """sum(weight x cross-entropy) / rows, in fp32 (eq. 2 to 5: the weights say which).

    Args:
        logits_NV: scores of the tokens that weigh something (others may be left out: they add nothing).
        targets_N: what each token should be.
        weights_N: from `token_weights`.
        kinds_N: TokenKind of each.
        rows: rows of the whole step, over all processes and accumulation steps.

    Returns:
        The loss, and per kind that is present `ce/mask`, `accuracy/mask`, `count/mask`, ...; `weight/p50`, `/p90`,
        `/max` over all N tokens: 1/t is heavy-tailed.
    """
    return weighed(losses_of_logits(logits_NV, targets_N, weights_N), weights_N, kinds_N, rows=rows)


def weighed(losses: TokenLosses, weights_N: Tensor, kinds_N: Tensor, *, rows: int) -> tuple[Tensor, Metrics]:
    """`denoising` of tokens whose cross-entropy is known, as a model's `token_losses` computes it."""
    with torch.no_grad():
        metrics = _by_kind(losses.ce_N, losses.correct_N, kinds_N)
        if len(weights_N):
            ranked_N = weights_N.float().sort().values
            for name, quantile in _QUANTILES:
                metrics[f"weight/{name}"] = ranked_N[round(quantile * (len(ranked_N) - 1))]
    return losses.loss / rows, metrics


def _by_kind(ce_N: Tensor, correct_N: Tensor, kinds_N: Tensor) -> Metrics:
    of_kind_KN = kinds_N[None, :] == torch.tensor(_SUPERVISED, device=kinds_N.device)[:, None]
    count_K = of_kind_KN.sum(dim=1)
    ce_K = (of_kind_KN * ce_N).sum(dim=1) / count_K
    accuracy_K = (of_kind_KN * correct_N).sum(dim=1) / count_K
    metrics: Metrics = {}
    for index, present in enumerate(count_K.tolist()):
        if present:
            name = _SUPERVISED[index].name.lower()
            metrics |= {
                f"ce/{name}": ce_K[index],
                f"accuracy/{name}": accuracy_K[index],
                f"count/{name}": count_K[index],
            }
    return metrics


def grounding(region_logits_BLR: Tensor, regions_BL: Tensor) -> tuple[Tensor, Metrics]:
    """Mean cross-entropy of the image region that each labelled token speaks of; 0 (with a graph) without a label.

    The labels are knowledge of the scene beyond its caption: results trained with them say so.
    """
    labelled_BL = regions_BL >= 0
    logits_NR, regions_N = region_logits_BLR[labelled_BL].float(), regions_BL[labelled_BL].long()
    if len(regions_N) == 0:
        return region_logits_BLR.sum() * 0.0, {}
    loss = F.cross_entropy(logits_NR, regions_N)
    accuracy = (logits_NR.argmax(dim=-1) == regions_N).float().mean()
    return loss, {"grounding/ce": loss.detach(), "grounding/accuracy": accuracy.detach()}

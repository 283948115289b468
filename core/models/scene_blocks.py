"""The transformer block of SceneDenoiser, written for fp32 on CPUs.

In training, attention is spelled out: the backward pass of scaled_dot_product_attention took half of a step on CPUs,
and the two autograd functions stand where torch's own compositions cost several passes over the activations. Without
gradients the same sums are done in place and with the fused kernel: 1.3 to 1.4 times as fast.

Shapes: B rows, T positions (image, then text), Q = T or 1 queries, D hidden size, H heads, E = D / H, P = E / 2 pairs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-6

Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys, values) of some positions, (B, H, T, E) -> those of all positions that they see."""


class UnitRms(torch.autograd.Function):
    """x / sqrt(mean(x²) + 1e-6) over the last axis (RMSNorm, Zhang and Sennrich 2019, without its gain)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Normalise; any shape."""
        inverse = ((x * x).sum(-1, keepdim=True) / x.shape[-1]).add_(EPSILON).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """dx = (dy - y mean(dy y)) / rms."""
        (gradient,) = gradients
        y, inverse = ctx.saved_tensors
        mean = (gradient * y).sum(-1, keepdim=True) / -y.shape[-1]
        product: Tensor = torch.addcmul(gradient, y, mean).mul_(inverse)
        return product


class SquaredRelu(torch.autograd.Function):
    """max(x, 0)² (So et al. 2021, Primer): as good as GELU here and far cheaper on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Apply; any shape."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """dx = 2 max(x, 0) dy."""
        (positive,) = ctx.saved_tensors
        product: Tensor = (gradients[0] * positive).mul_(2.0)
        return product


def rotation(images: int, length: int, pairs: int, base: float, *, device: torch.device | None = None) -> Tensor:
    """Complex rotary factors (T, P): half of the pairs turn with a text token's index, images do not turn.

    RoPE (Su et al. 2021) with few, fast frequencies; image positions have row and column embeddings instead.
    """
    turning = max(1, pairs // 2)
    frequencies_P = torch.zeros(pairs, device=device)
    frequencies_P[:turning] = base ** (-torch.arange(turning, device=device) / turning)
    index_T = torch.cat([torch.zeros(images, device=device), torch.arange(1, length + 1, device=device)])
    angles_TP = index_T[:, None] * frequencies_P
    return torch.polar(torch.ones_like(angles_TP), angles_TP)


class Block(nn.Module):
    """Pre-norm attention and MLP; queries and keys are RMS-normed, with a learned scale a head that starts at 1.5."""

    def __init__(self, hidden_size: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_out = nn.Linear(hidden_size, hidden_size)
        self.query_scale = nn.Parameter(torch.full((heads,), 1.5))
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp_in = nn.Linear(hidden_size, mlp_ratio * hidden_size)
        self.mlp_out = nn.Linear(mlp_ratio * hidden_size, hidden_size)

    def forward(
        self, x_BTD: Tensor, rotation_TP: Tensor, barred_BQT: Tensor | None, keep: Keep | None = None
    ) -> Tensor:
        """`barred_BQT` is True where a query may not attend to a key, Q = 1 for all queries alike; None: nowhere.

        keep: without gradients alone: takes the keys and values of these positions, and gives all that they attend to.
        """
        learning = torch.is_grad_enabled()
        normed_BTD = self.attention_norm(x_BTD)
        attended_BTD = (
            self._attend(normed_BTD, rotation_TP, barred_BQT)
            if learning
            else self._attend_without_gradients(normed_BTD, rotation_TP, barred_BQT, keep)
        )
        x_BTD = x_BTD + self.attention_out(attended_BTD)
        inner: Tensor = self.mlp_in(self.mlp_norm(x_BTD))
        inner = SquaredRelu.apply(inner) if learning else inner.relu_().square_()  # type: ignore[no-untyped-call]
        out_BTD: Tensor = x_BTD + self.mlp_out(inner)
        return out_BTD

    def _attend(self, x_BTD: Tensor, rotation_TP: Tensor, barred_BQT: Tensor | None) -> Tensor:
        b, t, d = x_BTD.shape
        e = d // self.heads
        # one copy to (3, B, H, T, E): the products below then run without any more
        qkv_3BHTE: Tensor = self.qkv(x_BTD).view(b, t, 3, self.heads, e).permute(2, 0, 3, 1, 4).contiguous()
        qk_2BHTE, v_1BHTE = torch.split(qkv_3BHTE, [2, 1])
        unit_2BHTE: Tensor = UnitRms.apply(qk_2BHTE)  # type: ignore[no-untyped-call]  # torch's
        pairs_2BHTP = torch.view_as_complex(unit_2BHTE.view(2, b, self.heads, t, e // 2, 2))
        q_BHTE, k_BHTE = torch.view_as_real(pairs_2BHTP * rotation_TP).flatten(-2).unbind(0)
        q_BHTE = q_BHTE * (self.query_scale * e**-0.5)[:, None, None]
        scores_BHTT = q_BHTE @ k_BHTE.transpose(-1, -2)
        if barred_BQT is not None:
            scores_BHTT = scores_BHTT.masked_fill(barred_BQT[:, None], torch.finfo(scores_BHTT.dtype).min)
        mixed_BHTE: Tensor = scores_BHTT.softmax(-1) @ v_1BHTE[0]
        return mixed_BHTE.transpose(1, 2).reshape(b, t, d)

    def _attend_without_gradients(
        self, x_BTD: Tensor, rotation_TP: Tensor, barred_BQT: Tensor | None, keep: Keep | None
    ) -> Tensor:
        b, t, d = x_BTD.shape
        e = d // self.heads
        qkv_BT3HE = self.qkv(x_BTD).view(b, t, 3, self.heads, e)
        qk_BT2HE, v_BTHE = qkv_BT3HE[:, :, :2], qkv_BT3HE[:, :, 2]
        inverse_BT2H1 = ((qk_BT2HE * qk_BT2HE).sum(-1, keepdim=True) / e).add_(EPSILON).rsqrt_()
        inverse_BT2H1[:, :, 0] *= (self.query_scale * e**-0.5)[:, None]
        pairs_BT2HP = torch.view_as_complex((qk_BT2HE * inverse_BT2H1).view(b, t, 2, self.heads, e // 2, 2))
        turned_BT2HE = torch.view_as_real(pairs_BT2HP * rotation_TP[..., None, None, :]).flatten(-2)
        q_BHTE, k_BHTE = (turned_BT2HE[:, :, i].transpose(1, 2) for i in range(2))
        v_BHTE = v_BTHE.transpose(1, 2)
        if keep is not None:
            k_BHTE, v_BHTE = keep(k_BHTE, v_BHTE)
        seen = None if barred_BQT is None else ~barred_BQT[:, None]
        mixed_BHTE = nn.functional.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=seen, scale=1.0)
        return mixed_BHTE.transpose(1, 2).reshape(b, t, d)

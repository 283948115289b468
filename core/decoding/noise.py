"""Random numbers of a decoding: each depends on the row's stream, the step, the position and a counter alone.

So neither the batch a row is in nor its padding changes a token. The numbers are those of core.seeds.uniforms, made on
the device where they are used.

Shapes: B rows, L tokens, N positions, n values a position.
"""

import torch
from torch import Tensor

from core.decoding.state import Canvas, Step


def signed(bits: int) -> int:
    """The int64 that has these 64 bits; longer numbers wrap around."""
    return (bits + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = signed(0x9E3779B97F4A7C15)
_FIRST = signed(0xBF58476D1CE4E5B9)
_SECOND = signed(0x94D049BB133111EB)
TOKENS, REVEALS = 0, 1
"""Salts: what the numbers are for."""


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around and whose shifts must be made logical."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _SECOND
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniforms(keys_N: Tensor, n: int, *, salt: int = 0) -> Tensor:
    """n uniforms in [0, 1) for each key, (N, n) float64: the same as core.seeds.uniforms."""
    counter_n = (torch.arange(1, n + 1, device=keys_N.device) + (salt << 32)) * _GOLDEN
    bits_Nn = _mix(_mix(keys_N)[:, None] + counter_n)
    return ((bits_Nn >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def position_keys(canvas: Canvas, step: Step) -> Tensor:
    """(B, L) int64: a key for every position of the responses in this step."""
    of_step_B = _mix(canvas.stream_B + signed((step.index + 1) * _GOLDEN))
    return _mix(of_step_B[:, None] + (canvas.position() + 1) * _GOLDEN)


def gumbel(keys_N: Tensor, n: int) -> Tensor:
    """(N, n) float64 of standard Gumbel noise."""
    return -torch.log(-torch.log(uniforms(keys_N, n, salt=TOKENS)))

"""Optimizers: Muon for the matrices between hidden layers, AdamW for everything else.

torch.optim.Muon iterates in bf16, which is slower than a whole training step on processors without bf16 units. This
one stays in the gradient's precision and iterates on all matrices of a shape at once.

Shapes: K matrices of equal shape, M x N each.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from core.errors import ConfigError
from core.models.denoiser import TrainableDenoiser
from core.training.lora import is_adapter
from core.training.settings import TrainSettings, UpdateSettings
from core.training.sharding import share_of

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAM_BETAS = (0.9, 0.98)


def orthogonalised(update_KMN: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1 (about .7 to 1.2), by five quintic Newton-Schulz iterations.

    Coefficients of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/).
    """
    tall = update_KMN.shape[-2] > update_KMN.shape[-1]
    x = update_KMN.mT if tall else update_KMN
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalised, scaled to the root mean square of AdamW's updates.

    Update of an M x N matrix: lr x 0.2 sqrt(max(M, N)) x orthogonalised (Liu et al. 2025, Muon is scalable).
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure, no loss
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, matrices in by_shape.items():
                update_KMN = orthogonalised(torch.stack([self._look_ahead(p) for p in matrices]))
                size = group["lr"] * 0.2 * math.sqrt(max(shape))
                for p, update_MN in zip(matrices, update_KMN, strict=True):
                    p.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update_MN, alpha=-size)

    def _look_ahead(self, p: Tensor) -> Tensor:
        if p.grad is None:
            raise ValueError("a matrix without a gradient has no update")
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(p.grad, 1.0 - _MOMENTUM)
        return p.grad.lerp(momentum, _MOMENTUM)


def build_optimizers(
    model: TrainableDenoiser, settings: TrainSettings, shares: Mapping[str, float] | None = None
) -> list[Optimizer]:
    """The optimizers that together update each trainable parameter of `model` once.

    `shares`: learning rates of parameters as shares of `lr`, by name; 1 for any other.
    """
    matrices = model.matrix_names() if settings.optimizer == "muon" else frozenset()
    matrices -= {name for name in matrices if is_adapter(name)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [(name, p) for name, p in named if name in matrices]
    other = [(name, p) for name, p in named if name not in matrices]
    optimizers: list[Optimizer] = []
    if hidden:
        groups = _by_share(hidden, shares or {})
        optimizers.append(Muon(groups, lr=settings.lr, weight_decay=settings.weight_decay))
    if other:
        groups, decay = _by_share(other, shares or {}), settings.weight_decay
        optimizers.append(AdamW(groups, lr=settings.lr, betas=_ADAM_BETAS, weight_decay=decay, fused=True))
    return optimizers


def _by_share(named: list[tuple[str, nn.Parameter]], shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """One group of an optimizer for each rate."""
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, p in named:
        groups[shares.get(name, 1.0)].append(p)
    return [{"params": params, "share": share} for share, params in groups.items()]


def learning_rate(step: int, settings: UpdateSettings) -> float:
    """Learning rate of update `step` (from 0): linear warm-up times a cosine from 1 to `floor`."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / max(1, settings.steps)))
    return settings.lr * warm * (settings.floor + (1.0 - settings.floor) * cosine)


def set_learning_rate(optimizers: list[Optimizer], lr: float) -> None:
    """Use `lr`, or its share that a group has, in the next step of each."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]


def optimizer_tensors(named: Iterable[tuple[str, nn.Parameter]], optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers as `parameter/entry` -> tensor, e.g. `lm_head.bias/exp_avg`."""
    tensors = {}
    for name, p in named:
        for optimizer in optimizers:
            for entry, value in optimizer.state.get(p, {}).items():
                tensors[f"{name}/{entry}"] = value.detach()
    return tensors


def load_optimizer_tensors(
    named: Iterable[tuple[str, nn.Parameter]], optimizers: list[Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Undo `optimizer_tensors` on new optimizers of the same kind over the same parameters.

    Raises:
        ConfigError: if `tensors` belong to another model.
    """
    of_parameter: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        of_parameter[name][entry] = value
    parameters = dict(named)
    if unknown := sorted(of_parameter.keys() - parameters.keys()):
        raise ConfigError(f"the optimizer's checkpoint belongs to another model: it knows {unknown[0]!r}")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            owned = {id(p) for p in group["params"]}
            for name, p in parameters.items():
                if id(p) in owned and name in of_parameter:
                    state = of_parameter[name]
                    optimizer.state[p] = {entry: share_of(value, p).clone() for entry, value in state.items()}

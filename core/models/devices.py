"""Where a model's weights go, and in which precision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`devices` maps prefixes of the names of a model's parts to devices: the longest that fits decides, else `device`.

    E.g. {"vision": "cuda:1", "language.layers.20": "cuda:1"}. dtype None keeps what the checkpoint has.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    devices: Mapping[str, str] = field(default_factory=dict)

    def device_of(self, name: str) -> torch.device:
        """The device of a parameter or a part."""
        fitting = [prefix for prefix in self.devices if f"{name}.".startswith(f"{prefix}.")]
        return torch.device(self.devices[max(fitting, key=len)] if fitting else self.device)

    def connect(self, model: nn.Module) -> None:
        """Make parts on different devices pass their tensors on. Nothing to do if all are on one.

        Raises:
            ConfigError: if `devices` names a part that the model does not have.
        """
        parts = dict(model.named_modules())
        if unknown := sorted(prefix for prefix in self.devices if prefix not in parts):
            known = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"device map: this model has no part {unknown[0]!r}; it has {known} and theirs")
        if not self.devices:
            return
        for name, part in parts.items():
            own = next(part.parameters(recurse=False), None)
            if name and (own is not None or any(prefix == name for prefix in self.devices)):
                part.register_forward_pre_hook(_mover(self.device_of(name)), with_kwargs=True)


def _mover(device: torch.device) -> Any:
    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def to(value: object) -> object:
            return value.to(device) if isinstance(value, Tensor) else value

        return tree_map(to, args), tree_map(to, kwargs)

    return move

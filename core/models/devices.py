"""Where a model's weights go, and in which precision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`devices` maps prefixes of the names of a model's parts to devices: the longest that fits decides, else `device`.

    E.g. {"vision": "cuda:1", "language.layers.20": "cuda:1"}. A layer stays whole, so does what lies beside no layers.
    dtype None keeps what the checkpoint has.
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

        What goes into a part is moved to it, and what comes out of the language model and the head to `model.device`.

        Raises:
            ConfigError: if `devices` names a part that the model does not have, or that has to stay with its like.
        """
        parts = dict(model.named_modules())
        if unknown := sorted(prefix for prefix in self.devices if prefix not in parts):
            known = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"device map: this model has no part {unknown[0]!r}; it has {known} and theirs")
        if not self.devices:
            return
        stacks = _stacks(parts)
        for prefix in self.devices:
            parent = prefix.rpartition(".")[0]
            if parent and not any(f"{stack}.".startswith(f"{parent}.") for stack in stacks):
                raise ConfigError(f"device map: {prefix!r} cannot leave {parent!r}, whose parts compute together")
        for name, part in parts.items():
            is_layer = name.rpartition(".")[0] in stacks
            if name and (is_layer or not any(name.startswith(f"{stack}.") for stack in stacks)):
                _receive(name, part, whole=is_layer)
        for part in model.children():
            part.register_forward_hook(_sender(cast(torch.device, model.device)))


def _stacks(parts: Mapping[str, nn.Module]) -> list[str]:
    """The lists of layers that lie in no other. A layer adds what its parts make to what goes in: it is not split."""
    lists = [name for name, part in parts.items() if isinstance(part, nn.ModuleList)]
    return [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]


def _receive(name: str, part: nn.Module, *, whole: bool) -> None:
    """Move what goes into a part to where its own tensors are, those of its parts included if it is a `whole`."""
    devices = {tensor.device for tensor in (*part.parameters(recurse=whole), *part.buffers(recurse=whole))}
    if len(devices) > 1:
        raise ConfigError(f"device map: {name!r} shares weights with a part on another device: put both on one")
    if devices:
        device = devices.pop()
        part.register_forward_pre_hook(lambda _, *given: _moved(given, device), with_kwargs=True)


def _sender(device: torch.device) -> Any:
    return lambda _, __, made: _moved(made, device)


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)

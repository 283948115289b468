"""Low-rank adapters (peft) on a model's linear layers: put in, merged into the weights, written beside a checkpoint.

Shapes: R rank, I inputs and O outputs of a layer. Its weight W becomes W + alpha / R x B_OR A_RI (Hu et al. 2021).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ConfigError, StoreError
from core.models.denoiser import TrainableDenoiser
from core.models.pretrained import PretrainedDenoiser
from core.seeds import rng
from core.training.groups import group_of
from core.training.settings import LoraSettings

FOLDER = "adapter"
"""Folder of a trained checkpoint with the adapters that were merged into it, as peft writes them."""

_NAME = "default"  # peft's, for an adapter without a name


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's two matrices."""
    return ".lora_A." in name or ".lora_B." in name


class Adapters:
    """The adapters of a model, in training; all other weights stand still."""

    def __init__(self, model: TrainableDenoiser, settings: LoraSettings, *, seed: int) -> None:
        """Put them in. A is drawn from `seed`, B is 0: the model computes what it did.

        Raises:
            ConfigError: if `settings.targets` names a layer that the model does not have.
        """
        self._model, self._settings = model, settings
        self._names = _layers(model, settings.targets)
        config = LoraConfig(
            r=settings.rank, lora_alpha=cast(Any, settings.alpha), target_modules=self._names, lora_dropout=0.0
        )
        with torch.device("meta"):  # or peft would draw from torch's own stream, which all threads share
            self._tuner: Any = LoraModel(cast(nn.Module, model), config, _NAME)
        for name, layer in self.layers().items():
            layer.cast_input_dtype_enabled = False  # autocast would undo it, and each layer keep a copy of its own
            _draw(layer, name, seed)

    def layers(self) -> dict[str, LoraLinear]:
        """The adapted layers by name."""
        parts = dict(cast(nn.Module, self._model).named_modules())
        return {name: cast(LoraLinear, parts[name]) for name in self._names}

    def merge(self) -> "Merged":
        """Add every adapter to its layer's weight and take it out: the model has the parts that it had before."""
        tensors = {}
        for name, layer in self.layers().items():
            for part, linear in (("lora_A", layer.lora_A[_NAME]), ("lora_B", layer.lora_B[_NAME])):
                tensors[f"{_published(self._model, name)}.{part}.weight"] = cast(Tensor, linear.weight).detach().cpu()
        self._tuner.merge_and_unload()
        return Merged(settings=self._settings, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Adapters that were merged into their model: A and B of each layer by the checkpoint's own names."""

    settings: LoraSettings
    tensors: dict[str, Tensor]

    def save(self, checkpoint: Path) -> None:
        """Write them beside the checkpoint's files, as peft reads them for a model with the checkpoint's names.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        folder = checkpoint / FOLDER
        config = {
            "peft_type": "LORA",
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({name.rpartition(".lora_")[0] for name in self.tensors}),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {f"base_model.model.{name}": tensor.contiguous() for name, tensor in self.tensors.items()},
                folder / "adapter_model.safetensors",
            )
            (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        except (OSError, SafetensorError) as error:
            raise StoreError(f"adapters {folder} could not be written: {error}") from error


def _layers(model: TrainableDenoiser, targets: tuple[str, ...]) -> list[str]:
    """Names of the linear layers of the language model that `targets` fit."""
    parts = dict(cast(nn.Module, model).named_modules())
    linear = [
        name
        for name, part in parts.items()
        if isinstance(part, nn.Linear) and group_of(model, f"{name}.weight", part.weight) == "language"
    ]
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"lora.targets: the language model has no linear layer {target!r}; it has {known}")
    return [name for name in linear if not targets or any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _draw(layer: LoraLinear, name: str, seed: int) -> None:
    """A uniform with the bound 1 / sqrt(inputs), as nn.Linear's and peft's own; from the layer's own stream."""
    down, up = (cast(nn.Linear, part[_NAME]) for part in (layer.lora_A, layer.lora_B))
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    bound = weight.shape[1] ** -0.5
    drawn = rng("lora", seed, name).uniform(-bound, bound, size=tuple(down.weight.shape)).astype(np.float32)
    down.weight = nn.Parameter(torch.from_numpy(drawn).to(weight.device))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=weight.device))


def _published(model: TrainableDenoiser, layer: str) -> str:
    name_of = model.layout.name_of if isinstance(model, PretrainedDenoiser) else str
    return name_of(f"{layer}.weight").removesuffix(".weight")

"""A model made ready for a training, and made whole again after it: adapters, rates of groups, precision, memory."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from core.errors import ConfigError
from core.models.denoiser import TrainableDenoiser
from core.training.groups import group_of
from core.training.lora import Adapters, Merged
from core.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model in training. `rates`: learning rate of each trained parameter by name, as a share of `lr`."""

    model: TrainableDenoiser
    settings: TrainSettings
    rates: Mapping[str, float]
    _adapters: Adapters | None = None
    _before: Mapping[str, tuple[torch.dtype, bool]] = field(default_factory=dict)

    def computing(self) -> AbstractContextManager[object]:
        """Forwards run in here: in bf16 where the settings say so.

        Weights in bf16 are kept until the forward ends, unless activations are not kept either: a layer then makes
        them anew, and all of them are never there at once.
        """
        if self.settings.precision == "fp32":
            return nullcontext()
        keeps = not self.settings.gradient_checkpointing
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, cache_enabled=keeps)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the training changes; the others are in the checkpoint that it started from."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def finish(self) -> Merged | None:
        """Merge the adapters, and give the model its own dtypes back. In evaluation mode."""
        for part in _checkpointing(self.model) if self.settings.gradient_checkpointing else ():
            part.activation_checkpointing_disable()  # type: ignore[no-untyped-call]  # transformers'
        merged = None if self._adapters is None else self._adapters.merge()
        for name, p in self.model.named_parameters():
            dtype, trained = self._before[name]
            p.data = p.data.to(dtype)
            p.requires_grad_(trained)
        self.model.train(False)
        return merged


def prepare(model: TrainableDenoiser, settings: TrainSettings, *, seed: int) -> Trainee:
    """Make `model` ready, in place and in training mode; `seed` is of the adapters.

    What is trained is kept in fp32, whatever the checkpoint's dtype: at the learning rates of a fine-tuning an update
    is smaller than bf16 can add to a weight. What stands still keeps bf16 where it is computed in bf16.

    Raises:
        ConfigError: the settings name a group or a layer that the model does not have, freeze all of it, or ask for
            checkpoints of activations from a model that cannot make them.
    """
    before = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    adapters = Adapters(model, settings.lora, seed=seed) if settings.lora.rank else None
    shares = _shares(model, settings, adapted=adapters is not None, before=before)
    for name, p in model.named_parameters():
        p.requires_grad_(name in shares)
        if p.requires_grad or settings.precision == "fp32" or p.dtype != torch.bfloat16:
            p.data = p.data.float()
    if settings.gradient_checkpointing:
        parts = list(_checkpointing(model))
        if not parts:
            raise ConfigError("gradient_checkpointing: this model's layers cannot compute their activations again")
        for part in parts:
            part.activation_checkpointing_enable()
            # only reentrant checkpoints, which these are not, need what this takes back
            part.disable_input_require_grads()  # type: ignore[no-untyped-call]  # transformers'
    model.train()
    return Trainee(model=model, settings=settings, rates=shares, _adapters=adapters, _before=before)


def _shares(
    model: TrainableDenoiser,
    settings: TrainSettings,
    *,
    adapted: bool,
    before: Mapping[str, tuple[torch.dtype, bool]],
) -> dict[str, float]:
    """What is trained, and at which share of `lr`. With adapters a group without a rate of its own stands still."""
    group = {name: group_of(model, name, p) for name, p in model.named_parameters()}
    given = {name: rate for name, rate in settings.group_lr if rate is not None}
    if unknown := sorted(given.keys() - group.values()):
        known = ", ".join(sorted(set(group.values())))
        raise ConfigError(f"group_lr.{unknown[0]}: this model has no such part; it has {known}")
    shares = {}
    for name, p in model.named_parameters():
        rate = given.get(group[name], settings.lr)
        if adapted and group[name] == "language":
            chosen = p.requires_grad  # the adapters' own
        else:
            chosen = before[name][1] and (not adapted or group[name] in given)
        if chosen and rate > 0:
            shares[name] = rate / settings.lr
    if not shares:
        raise ConfigError("group_lr: every part of the model stands still: give one of them a rate")
    return shares


def _checkpointing(model: TrainableDenoiser) -> Iterator[PreTrainedModel]:
    """The outermost transformers models in it that can compute their activations again in the backward pass."""
    parts = dict(cast(nn.Module, model).named_modules())
    able = {
        name: part
        for name, part in parts.items()
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing
    }
    for name, part in able.items():
        if not any(name.startswith(f"{other}." if other else "") for other in able if other != name):
            yield part

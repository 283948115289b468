"""Settings of the training loop. Import-light: the command line reads them before it needs torch."""

from typing import Any, Literal

from pydantic import Field

from core.settings import Settings

CURVES_FILE = "training_curves.json"
"""File of a trained checkpoint with [[step, {metric: mean}], ...]."""


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021) in place of the language model's own weights, merged into them at the end."""

    rank: int = Field(default=0, ge=0)
    """Rank of each adapter; 0: no adapters, all weights are trained."""
    alpha: float = Field(default=32.0, gt=0.0)
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the layers that get one, e.g. q_proj; none: every linear layer of the language model."""


class GroupRates(Settings):
    """Highest learning rates of the parts of a model: 0 keeps a part as it is; left out, it has the training's `lr`.

    With adapters the language model's is theirs, and another part is trained only if its rate is given.
    """

    vision_tower: float | None = Field(default=None, ge=0.0)
    """What sees."""
    vision_adapter: float | None = Field(default=None, ge=0.0)
    """What turns the tower's features into the language model's."""
    language: float | None = Field(default=None, ge=0.0)
    """The language model, with a head that shares its token embedding."""
    head: float | None = Field(default=None, ge=0.0)
    """What scores the vocabulary."""


class UpdateSettings(Settings):
    """How weights are updated."""

    steps: int = Field(default=1000, ge=0)
    """Updates of the weights."""
    batch_size: int = Field(default=64, ge=1)
    """Rows an update."""
    lr: float = Field(default=3e-3, gt=0.0)
    """Highest learning rate (of both optimizers: Muon's update is scaled to the size of AdamW's)."""
    warmup: int = Field(default=100, ge=0)
    """Updates until the learning rate has risen from 0 to `lr`."""
    floor: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of `lr` that the cosine ends at."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices between hidden layers, AdamW for the rest, adapters too. adamw: AdamW for all."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled: an update shrinks each weight by this share of the learning rate."""
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient: 1/t weights are heavy-tailed."""
    log_every: int = Field(default=20, ge=1)
    """Updates between two reports of the metrics' means."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Updates between two checkpoints, from which an interrupted training goes on exactly."""


class TrainSettings(UpdateSettings):
    """How a model is trained."""

    group_lr: GroupRates = GroupRates()
    lora: LoraSettings = LoraSettings()
    precision: Literal["fp32", "bf16"] = "fp32"
    """What forward and backward are computed in. Trained weights and their optimizer are in fp32 with both."""
    micro_batch: int = Field(default=0, ge=0)
    """Rows computed at once, 0: all of a process. Fewer need less memory, and give the same update."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    bucket: int = Field(default=0, ge=0)
    """Updates whose rows are dealt out by length, so that little is padded; 0: rows of any length stand together."""


SAVES_MEMORY = ("micro_batch", "gradient_checkpointing")
"""Settings that change an update by rounding alone: a training that did not fit goes on with others."""

_LATER = ("group_lr", "lora", "precision", "micro_batch", "gradient_checkpointing", "bucket")


def dump_settings(settings: TrainSettings) -> dict[str, Any]:
    """As JSON; a key of _LATER at its default is left out, so that work keeps the key that it had before there was one.

    Nothing is left out of a group of settings that differs from its default anywhere.
    """
    fields = type(settings).model_fields
    unset = {name for name in _LATER if getattr(settings, name) == fields[name].default}
    return settings.model_dump(mode="json", exclude=unset)


class VisionSettings(UpdateSettings):
    """Vision warm-up: each image region learns to name the words that speak of it, before any text is masked."""

    steps: int = Field(default=0, ge=0)
    """Updates; 0: none. Needs samples whose words are grounded in image regions."""
    batch_size: int = Field(default=128, ge=1)
    """Images an update."""
    warmup: int = Field(default=50, ge=0)
    """Updates until the learning rate has risen from 0 to `lr`."""

"""Settings of the training loop. Import-light: the command line reads them before it needs torch."""

from typing import Literal

from pydantic import Field

from core.settings import Settings

CURVES_FILE = "training_curves.json"
"""File of a trained checkpoint with [[step, {metric: mean}], ...]."""


class TrainSettings(Settings):
    """How a model is trained."""

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
    """muon: Muon for the matrices between hidden layers, AdamW for the rest. adamw: AdamW for all."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled: an update shrinks each weight by this share of the learning rate."""
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient: 1/t weights are heavy-tailed."""
    log_every: int = Field(default=20, ge=1)
    """Updates between two reports of the metrics' means."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Updates between two checkpoints, from which an interrupted training goes on exactly."""


class VisionSettings(TrainSettings):
    """Vision warm-up: each image region learns to name the words that speak of it, before any text is masked."""

    steps: int = Field(default=0, ge=0)
    """Updates; 0: none. Needs samples whose words are grounded in image regions."""
    batch_size: int = Field(default=128, ge=1)
    """Images an update."""
    warmup: int = Field(default=50, ge=0)
    """Updates until the learning rate has risen from 0 to `lr`."""

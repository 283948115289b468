"""The groups of a model's parameters that may learn at rates of their own."""

from typing import Literal

from torch import Tensor

from core.models.denoiser import TrainableDenoiser

Group = Literal["vision_tower", "vision_adapter", "language", "head"]

_ADAPTER = "vision.adapter."
_HEADS = ("head.", "lm_head.")


def group_of(model: TrainableDenoiser, name: str, p: Tensor) -> Group:
    """The group of a parameter: the adapter and the head by their names, the rest of what sees is the tower.

    A head that shares the token embedding has no parameters of its own: both belong to the language model.
    """
    if name.startswith(_ADAPTER):
        return "vision_adapter"
    if any(p is seeing for seeing in model.vision_parameters()):
        return "vision_tower"
    return "head" if name.startswith(_HEADS) else "language"

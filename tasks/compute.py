"""The processor threads of a task, and the device that its model runs on."""

import torch

from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from tasks.workplace import Workplace


def use_threads(count: int) -> None:
    """Use `count` threads for tensor work from here on, in this thread of the process."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def load_model(place: Workplace, model: Ref) -> TrainableDenoiser:
    """A checkpoint's model: on the GPU where there is one, else on the processor."""
    return load_denoiser(place.local_folder(model), device="cuda" if torch.cuda.is_available() else "cpu")

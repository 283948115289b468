"""The processor threads of a task, and the device that its model runs on."""

import ctypes
import ctypes.util
from functools import cache

import torch

from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from tasks.workplace import Workplace


def use_threads(count: int) -> None:
    """Use `count` threads for tensor work from here on, in this thread of the process."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def return_memory() -> None:
    """Give memory that is free inside the C library's heap back to the system.

    A training frees tensors of ever other sizes: without this, glibc's heaps grew by 2 GB a training.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)  # glibc's alone


def load_model(place: Workplace, model: Ref) -> TrainableDenoiser:
    """A checkpoint's model: on the GPU where there is one, else on the processor."""
    return load_denoiser(place.local_folder(model), device="cuda" if torch.cuda.is_available() else "cpu")

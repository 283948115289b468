"""The processor threads of a task, and the device that its model runs on."""

import ctypes
import ctypes.util
from functools import cache

import torch

from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from tasks.workplace import Workplace


def use_threads(count: int) -> None:
    """Use `count` threads for tensor work from here on.

    Parts of it hold for the whole process, whatever torch reports in this thread: so work that runs side by side asks
    for the same number, and nobody sets an old one back. Sums over another number of threads end in other bits.
    """
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

"""The processor threads of a task, the device that its model runs on, and the processes that train it."""

import ctypes
import ctypes.util
from functools import cache

import polars as pl
import torch

from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from core.training.job import TrainJob, train_here
from core.training.launch import train_apart
from core.training.loop import OnMetrics, TrainResult
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
    return load_denoiser(place.local_folder(model), device=_device())


def train_on(
    place: Workplace, job: TrainJob, rows: pl.DataFrame, *, processes: int, on_metrics: OnMetrics
) -> TrainResult:
    """Do a training with the place's images: in this process, or in several."""
    if processes == 1:
        return train_here(job, rows, place.load_image, device=_device(), on_metrics=on_metrics)
    return train_apart(job, rows, place.image_file, processes=processes, on_metrics=on_metrics)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

"""The processor threads of a task, and the device and the model that it works with."""

import ctypes
import ctypes.util
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from core.errors import ConfigError
from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from core.models.settings import Dtype
from tasks.workplace import Workplace

_DTYPES: dict[Dtype, torch.dtype | None] = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


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
    """A checkpoint's model, for a training that will change it."""
    with MODELS.device(place.devices) as device:
        MODELS.forget(device)
        return load_denoiser(place.local_folder(model), device=device)


@contextmanager
def drafting_model(place: Workplace, model: Ref, dtype: Dtype = "auto") -> Iterator[TrainableDenoiser]:
    """A checkpoint's model for work that only reads it, alone on its device as long as the block lasts.

    It stays in memory for the next shard that asks for it.
    """
    with MODELS.device(place.devices) as device:
        kept = (model.digest, dtype)
        found = MODELS.take(device, kept)
        if found is None:
            found = load_denoiser(place.local_folder(model), device=device, dtype=_DTYPES[dtype])
        yield found
        MODELS.keep(device, kept, found)  # not after an error: nobody knows what it did to the device


def device_names(wanted: Sequence[str]) -> list[str]:
    """The devices that `compute.devices` names, each once.

    Raises:
        ConfigError: one of them is not there.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names: list[str] = []
    for name in wanted:
        if name == "auto":
            names += there or ["cpu"]
            continue
        exact = "cuda:0" if name == "cuda" else name
        if exact not in ("cpu", *there):
            raise ConfigError(f"compute.devices: {name} is not there: this machine has {len(there)} CUDA devices")
        names.append(exact)
    return list(dict.fromkeys(names))


def shards_at_once(wanted: Sequence[str], *, threads: int, each: int) -> int:
    """How many shards may be drafted side by side: one on each GPU, or as many as the processor has threads for."""
    names = device_names(wanted)
    return max(1, threads // each) if names == ["cpu"] else len(names)


class Models:
    """The models of this process: who uses which device, and which models wait for their next use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._idle: dict[str, list[tuple[Kept, TrainableDenoiser]]] = {}

    @contextmanager
    def device(self, wanted: Sequence[str]) -> Iterator[str]:
        """The device that the fewest use."""
        names = device_names(wanted)
        with self._lock:
            name = min(names, key=lambda one: self._users[one])
            self._users[name] += 1
        try:
            yield name
        finally:
            with self._lock:
                self._users[name] -= 1

    def take(self, device: str, kept: "Kept") -> TrainableDenoiser | None:
        """An idle model, which then is the caller's alone; idle ones of another kind are forgotten."""
        with self._lock:
            same = [model for key, model in self._idle.pop(device, []) if key == kept]
            self._idle[device] = [(kept, model) for model in same[1:]]
        return same[0] if same else None

    def keep(self, device: str, kept: "Kept", model: TrainableDenoiser) -> None:
        """The model is idle from now on."""
        with self._lock:
            self._idle.setdefault(device, []).append((kept, model))

    def forget(self, device: str) -> None:
        """Free the memory of idle models: something else is coming."""
        with self._lock:
            self._idle.pop(device, None)
        torch.cuda.empty_cache()


Kept = tuple[str, Dtype]
"""Digest of the checkpoint, precision."""

MODELS = Models()

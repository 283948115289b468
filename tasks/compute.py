"""The processor threads of a task, the device and the model that it works with, and those that train together."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import polars as pl
import torch

from core.decoding.samples import OnDecoded
from core.drafting_process import Done, DraftJob, DraftProcess, Kept
from core.errors import ConfigError, Interrupted
from core.manifest import Ref
from core.models.denoiser import TrainableDenoiser, load_denoiser
from core.models.settings import Dtype
from core.training.job import TrainJob, train_here
from core.training.launch import train_apart
from core.training.loop import OnMetrics, TrainResult
from tasks.workplace import Workplace

R = TypeVar("R")
DTYPES: dict[Dtype, torch.dtype | None] = {
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


def load_model(place: Workplace, model: Ref) -> TrainableDenoiser:
    """A checkpoint's model, for a training that will change it."""
    with MODELS.device(place.devices) as device:
        MODELS.forget(device)
        return load_denoiser(place.local_folder(model), device=device)


def train_on(
    place: Workplace, job: TrainJob, rows: pl.DataFrame, *, processes: int, on_metrics: OnMetrics
) -> TrainResult:
    """Do a training with the place's images and devices: in this process, or in several.

    Raises:
        ConfigError: there are fewer devices than processes.
    """
    if processes > 1:
        devices = one_each(place.devices, processes)
        for device in devices:
            MODELS.forget(device)
        return train_apart(job, rows, place.image_file, devices=devices, on_metrics=on_metrics)
    with MODELS.device(place.devices) as device:
        MODELS.forget(device)
        try:
            return train_here(job, rows, place.images, device=device, on_metrics=on_metrics)
        finally:
            torch.cuda.empty_cache()  # other processes draft on the device next


def one_each(wanted: Sequence[str], processes: int) -> list[str]:
    """A GPU for each process, or the processor for all of them."""
    names = device_names(wanted)
    if names == ["cpu"]:
        return names * processes
    gpus = [name for name in names if name != "cpu"]
    if len(gpus) < processes:
        raise ConfigError(f"compute.processes: {processes} that train together need a GPU each; there are {len(gpus)}")
    return gpus[:processes]


def draft_on(
    place: Workplace,
    model: Ref,
    work: Callable[..., R],
    samples: pl.DataFrame,
    *,
    threads: int,
    dtype: Dtype = "auto",
    tell: Callable[[str], None],
    on_progress: OnDecoded,
    **how: Any,
) -> Done[R]:
    """`core.drafting.draft` or `answer` by a checkpoint, on one of the place's devices.

    Where there are several devices, in the process that this one has for each; the model stays in memory for the next
    shard that asks for it.
    """
    job = DraftJob(
        work=work,
        samples=samples,
        load_image=place.images,
        checkpoint=partial(place.local_folder, model),
        digest=model.digest,
        dtype=DTYPES[dtype],
        threads=threads,
        how=how,
    )
    with MODELS.device(place.devices) as device:
        if len(device_names(place.devices)) > 1:
            return MODELS.process(device).run(job, tell=tell, on_progress=on_progress)
        found = MODELS.take(device, job.model) or job.load(device)
        done = job.run(found, tell=tell, on_progress=on_progress)
        MODELS.keep(device, job.model, found)  # not after an error: nobody knows what it did to the device
        return done


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
    """Who uses which device, which models wait in this process for their next use, and each device's own process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._idle: dict[str, list[tuple[Kept, TrainableDenoiser]]] = {}
        self._processes: dict[str, DraftProcess] = {}

    @contextmanager
    def device(self, wanted: Sequence[str]) -> Iterator[str]:
        """The device that the fewest use, of those that failed the least: a broken one would soon be free again."""
        names = device_names(wanted)
        with self._lock:
            name = min(names, key=lambda one: (self._failures[one], self._users[one]))
            self._users[name] += 1
        try:
            yield name
        except Interrupted:
            raise
        except Exception:
            self._failures[name] += 1
            raise
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

    def process(self, device: str) -> DraftProcess:
        """The process that drafts on a device: the same one as long as it lives."""
        with self._lock:
            found = self._processes.get(device)
            if found is None or not found.is_alive:
                found = self._processes[device] = DraftProcess(device)
            return found

    def forget(self, device: str) -> None:
        """Free the memory of idle models, and of the device's process if it is idle: something else is coming."""
        with self._lock:
            self._idle.pop(device, None)
            process = self._processes.get(device)
        if process is not None:
            process.close_if_idle()
        torch.cuda.empty_cache()


MODELS = Models()

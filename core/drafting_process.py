"""Drafting in a process of its own, which has its GPU to itself.

A decode step is a few hundred short calls from Python. Threads of one process that decode on several GPUs would wait
for each other's calls, processes do not.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import polars as pl
import torch

from core.decoding.room import Room
from core.decoding.samples import OnDecoded
from core.errors import FatalError, RedraftError
from core.heap import freed_memory_kept
from core.ingest.images import LoadImage
from core.interruption import check, on_interruption
from core.models.denoiser import TrainableDenoiser, load_denoiser

R = TypeVar("R")
_GRACE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Done(Generic[R]):
    """What the work made, and how often memory was too small for a batch."""

    result: R
    halvings: int


@dataclass(frozen=True, kw_only=True)
class DraftJob(Generic[R]):
    """Samples, the checkpoint that answers them, and how. It pickles.

    work: `core.drafting.draft` or `answer`; `how` has what that takes besides model, samples, images and what it tells.
    checkpoint: finds its folder, whose files are read through, so only if the model is not there yet; `digest` is its
    name. dtype: None keeps the checkpoint's.
    """

    work: Callable[..., R]
    samples: pl.DataFrame
    load_image: LoadImage
    checkpoint: Callable[[], Path]
    digest: str
    dtype: torch.dtype | None
    threads: int
    how: Mapping[str, Any]

    @property
    def model(self) -> "Kept":
        """Jobs with the same one can use the same model, one after the other."""
        return self.digest, self.dtype

    def load(self, device: str) -> TrainableDenoiser:
        """The model."""
        return load_denoiser(self.checkpoint(), device=device, dtype=self.dtype)

    def run(self, model: TrainableDenoiser, *, tell: Callable[[str], None], on_progress: OnDecoded) -> Done[R]:
        """Do it here. `tell` hears of batches that were too large."""
        torch.set_num_threads(self.threads)
        room = Room(tell=tell)
        with freed_memory_kept():
            result = self.work(
                model, self.samples, load_image=self.load_image, room=room, on_progress=on_progress, **self.how
            )
        return Done(result=result, halvings=room.halvings)


Kept = tuple[str, torch.dtype | None]
"""Digest of a checkpoint, precision."""


class DraftProcess:
    """A process that drafts on one device, job after job, and ends with this one. The last job's model stays."""

    def __init__(self, device: str) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self.device = device
        self._turn = threading.Lock()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device), name=f"draft {device}", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def is_alive(self) -> bool:
        """Whether it takes jobs."""
        return self._process.is_alive()

    def run(self, job: DraftJob[R], *, tell: Callable[[str], None], on_progress: OnDecoded) -> Done[R]:
        """Have a job done, after those that others gave it.

        After an error that is no RedraftError the process ends: nobody knows what that did to the device.

        Raises:
            RedraftError: what stopped the work there; Interrupted, if all was to stop.
            FatalError: the process ended, or something went wrong in it that is no RedraftError.
        """
        with self._turn:
            check()
            kind, said = self._have_done(job, tell, on_progress)
            if kind == "broken":
                self._end()
        if kind in ("error", "broken"):
            raise said
        done: Done[R] = said
        return done

    def close_if_idle(self) -> None:
        """End it, and free its device, unless it has a job."""
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()

    def _have_done(self, job: DraftJob[R], tell: Callable[[str], None], on_progress: OnDecoded) -> tuple[str, Any]:
        try:
            with on_interruption(self._process.terminate):
                self._pipe.send(job)
                while True:
                    kind, said = self._heard()
                    if kind == "progress":
                        on_progress(*said)
                    elif kind == "told":
                        tell(said)
                    else:
                        return kind, said
        except BaseException:
            self._end()  # it may be in the middle of a job that nobody waits for any more
            raise

    def _heard(self) -> tuple[str, Any]:
        try:
            heard: tuple[str, Any] = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(_GRACE_S)
            check()
            raise FatalError(
                f"the process that drafted on {self.device} ended with code {self._process.exitcode} (-9: killed, "
                "often because memory ran out). Given again, the command repeats its shard alone"
            ) from error
        return heard

    def _end(self) -> None:
        self._process.terminate()
        self._process.join(_GRACE_S)
        self._pipe.close()


def _serve(pipe: "Connection[Any, Any]", device: str) -> None:
    """The process: do job after job until nobody gives one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    kept: tuple[Kept, TrainableDenoiser] | None = None
    while True:
        try:
            job: DraftJob[Any] = pipe.recv()
        except EOFError:
            return
        model = kept[1] if kept is not None and kept[0] == job.model else None
        kept = None  # before another is loaded
        try:
            model = model or job.load(device)
            done = job.run(
                model,
                tell=lambda words: pipe.send(("told", words)),
                on_progress=lambda *progress: pipe.send(("progress", progress)),
            )
        except RedraftError as error:
            pipe.send(("error", error))
        except Exception:  # whatever it is, the other side has to hear of it
            pipe.send(("broken", FatalError(f"drafting on {device} failed:\n{traceback.format_exc()}")))
        else:
            kept = (job.model, model)
            pipe.send(("done", done))


def _end_with_parent() -> None:
    """However it ends, killed outright included."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)

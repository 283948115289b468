"""One of the processes of a training, as `core.training.launch` has torchrun start it: FOLDER is its only argument."""

import json
import os
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import polars as pl
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from core.errors import RedraftError
from core.ingest.images import StoredImages
from core.training.job import TrainJob, train_here
from core.training.launch import DEVICES, ERROR, IMAGES, JOB, REJECTS, REPORT, RESULT, ROWS
from core.training.sharding import Processes

_PATIENCE = timedelta(hours=2)
"""The others wait while the first process writes checkpoints: 100 GB take longer than torch's ten minutes."""


def main(folder: Path) -> int:
    """Train. Returns the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    processes, device = _join(json.loads((folder / DEVICES).read_text()))
    files = dict(pl.read_parquet(folder / IMAGES).iter_rows())
    try:
        result = train_here(
            TrainJob.model_validate_json((folder / JOB).read_text()),
            pl.read_parquet(folder / ROWS),
            StoredImages(lambda sha: Path(files[sha]).read_bytes()),
            device=device,
            on_metrics=_report,
            processes=processes,
        )
    except RedraftError as error:
        _leave_behind(folder, error)
        return 1
    if processes.rank == 0:
        result.rejects.write_parquet(folder / REJECTS)
        said = {"steps": result.steps, "resumed_at": result.resumed_at, "seconds": result.seconds}
        (folder / RESULT).write_text(json.dumps({**said, "curve": result.curve}))
    dist.barrier()  # nobody leaves, and ends the others, before the model is written
    dist.destroy_process_group()
    return 0


def _end_with_parent() -> None:
    """The input ends when the process that started the training does, however it does."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _join(devices: list[str]) -> tuple[Processes, str]:
    """Find the others, and this process's device."""
    device = torch.device(devices[dist.get_node_local_rank()])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl", timeout=_PATIENCE)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return Processes(rank=dist.get_rank(), world=dist.get_world_size(), mesh=mesh), str(device)


def _report(step: int, metrics: Mapping[str, float]) -> None:
    sys.stdout.write(f"{REPORT}{json.dumps([step, dict(metrics)])}\n")
    sys.stdout.flush()


def _leave_behind(folder: Path, error: RedraftError) -> None:
    """The first one's error is the one to tell: the others may have failed because of it."""
    draft = folder / f".{ERROR}-{os.getpid()}"
    draft.write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
    try:
        os.link(draft, folder / ERROR)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

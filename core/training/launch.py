"""A training in several processes of this machine: torchrun inside a job, followed line by line.

The job travels as files in its work folder: JSON, and the rows and the places of their images as Parquet. Process 0
writes a line of JSON for every report, and in the end the checkpoint, result.json and the rows it could not read.
"""

import json
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import polars as pl

from core import errors
from core.errors import FatalError, RedraftError
from core.interruption import check, on_interruption
from core.training.job import TrainJob
from core.training.loop import OnMetrics, TrainResult

JOB, DEVICES, ROWS, IMAGES = "job.json", "devices.json", "rows.parquet", "images.parquet"
RESULT, REJECTS, ERROR = "result.json", "rejects.parquet", "error.json"
LOGS = "torchrun"
"""torchrun makes a folder anyway, and would leave it among the machine's temporary files."""
REPORT = "redraft-report "
"""Begins a line that is a report and no chatter."""

_LINES = 400
_ROOT_CAUSE = re.compile(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)")
"""In torchrun's account of each process that failed, of which that of the first one to fail comes last."""
_RAISED = re.compile(r"^(?:\[rank(\d+)\]: )?([\w.]*(?:Error|Exception)(?:: .+)?)$", re.MULTILINE)
"""The last line of a traceback, which torchrun marks with the process's number, if that is known."""
_GRACE_S = 10.0


def train_apart(
    job: TrainJob,
    rows: pl.DataFrame,
    image_file: Callable[[str], Path],
    *,
    devices: Sequence[str],
    on_metrics: OnMetrics,
) -> TrainResult:
    """As `train_here`, in one process a device, which end when this one does. Adapters are written, not returned.

    Args:
        job: what is done.
        rows: TrainingExamples.
        image_file: file of an image, by its sha256.
        devices: where each process computes: GPUs, or the processor as often as processes shall share it.
        on_metrics: receives the reports as they come.

    Raises:
        RedraftError: what stopped the training in one of them; Interrupted, if all was to stop.
        FatalError: they ended otherwise; the message says which and how, its cause has their last lines.
    """
    folder = job.work
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, REJECTS, ERROR):
        (folder / name).unlink(missing_ok=True)
    (folder / JOB).write_text(job.model_dump_json())
    (folder / DEVICES).write_text(json.dumps(list(devices)))
    rows.write_parquet(folder / ROWS)
    shas = rows["image_sha"].drop_nulls().unique(maintain_order=True)
    places = [str(image_file(sha)) for sha in shas]
    pl.DataFrame({"sha": shas, "file": places}, schema={"sha": pl.String, "file": pl.String}).write_parquet(
        folder / IMAGES
    )
    with _torchrun(folder, len(devices)) as child, on_interruption(partial(_end_of_input, child)):
        last = _follow(child, on_metrics)
        code = child.wait()
    if code != 0:
        check()
        raise _what_stopped_it(folder, code, last) from RuntimeError("\n".join(["the last lines were:", *last]))
    said = json.loads((folder / RESULT).read_text())
    curve = [(step, metrics) for step, metrics in said["curve"]]
    return TrainResult(
        steps=said["steps"], resumed_at=said["resumed_at"], seconds=said["seconds"], curve=curve,
        rejects=pl.read_parquet(folder / REJECTS),
    )  # fmt: skip


@contextmanager
def _torchrun(folder: Path, processes: int) -> Iterator[subprocess.Popen[str]]:
    """torchrun and its workers. They read an input that nobody writes: when it ends, with this process, they end."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "--log-dir", str(folder / LOGS), "-m", "core.training.worker", str(folder),
    ]  # fmt: skip
    child = subprocess.Popen(  # noqa: S603 - the command is ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        _end_of_input(child)
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()


def _end_of_input(child: "subprocess.Popen[str]") -> None:
    """Let the workers end."""
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()


def _follow(child: "subprocess.Popen[str]", on_metrics: OnMetrics) -> list[str]:
    """Pass the reports on until the output ends. Returns its last other lines."""
    last: deque[str] = deque(maxlen=_LINES)
    output: IO[str] | None = child.stdout
    for line in output or ():
        if line.startswith(REPORT):
            step, metrics = json.loads(line.removeprefix(REPORT))
            on_metrics(step, metrics)
        else:
            last.append(line.rstrip())
    return list(last)


def _what_stopped_it(folder: Path, code: int, last: list[str]) -> RedraftError:
    with suppress(OSError, ValueError, KeyError):
        said: Mapping[str, str] = json.loads((folder / ERROR).read_text())
        kind = getattr(errors, said["type"])
        if issubclass(kind, RedraftError):
            error: RedraftError = kind(said["message"])
            return error
    return FatalError(_how_it_ended(code, "\n".join(last)))


def _how_it_ended(code: int, output: str) -> str:
    """In a sentence, from the code and the output of torchrun. An exception's name and words are part of it.

    One that was killed is the cause, though its peers, which then miss it, may be found first; SIGTERM is torchrun's.
    """
    failed = [(by, int(status)) for by, status in _ROOT_CAUSE.findall(output)]
    killed = [one for one in failed if one[1] < 0 and one[1] != -signal.SIGTERM]
    rank, status = (killed or failed or [("", code)])[-1]
    who = f"process {rank} of the training" if failed else "the training's processes"
    raised = _RAISED.findall(output)
    own = [words for by, words in raised if failed and by == rank] or [words for by, words in raised if not by]
    if own and status > 0:
        return f"{who} ended with code {status}: {own[-1]}"
    why = " (killed, often because memory ran out)" if status == -signal.SIGKILL else ""
    return f"{who} ended with code {status}{why}. Given again, the command goes on from its newest checkpoint"

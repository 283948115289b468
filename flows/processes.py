"""Server processes: start one in its own process group, recognise it later, stop the whole group.

A process is known by its id and its time of creation together, so that a reused id is never mistaken for it. The time
counts from the machine's boot: the time of day of a creation moves whenever the clock is set or merely rounded.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_WATCH_S = 0.5


@dataclass(frozen=True)
class Process:
    """A process id and when that process was created (seconds since the machine's boot)."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this id now. Raises psutil.Error."""
        return cls(pid, round(psutil.Process(pid).create_time() - psutil.boot_time(), 2))


def this_process() -> Process:
    """The calling process."""
    return Process.of(os.getpid())


def alive(process: Process) -> bool:
    """Whether this very process still runs: not one that got its id later, not a zombie."""
    with suppress(psutil.Error):
        # the two times that `of` subtracts are read one after the other, and each is rounded to seconds
        same = abs(Process.of(process.pid).created - process.created) < 2.5
        return same and bool(psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE)
    return False


def free_port(preferred: int | None = None) -> int:
    """A free TCP port of 127.0.0.1: the preferred one if it can be had."""
    for port in (preferred or 0, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    msg = "no free TCP port on 127.0.0.1"
    raise OSError(msg)


def start(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Process:
    """Start `command` in a session of its own (Ctrl-C in the terminal does not reach it), its output added to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603  (the command is ours)
            list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return Process.of(child.pid)


def end_beside(other: int) -> None:
    """End this process when another does, in whatever way that ends; at once if it is not there."""

    def watch() -> None:
        try:
            process = Process.of(other)
            while alive(process):
                time.sleep(_WATCH_S)
        finally:
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def stop(processes: Sequence[Process], *, grace: float = 10.0) -> None:
    """SIGTERM to the group of each process, SIGKILL to what is left of them after `grace` seconds."""
    members = {process: _group(process) for process in processes if alive(process)}
    everyone = [member for group in members.values() for member in group]
    for process in members:
        _signal_group(process, signal.SIGTERM)
    _, left = psutil.wait_procs(everyone, timeout=grace)
    for member in left:
        with suppress(psutil.Error):
            member.kill()
    for process in members:
        _signal_group(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=grace)


def _group(process: Process) -> list[psutil.Process]:
    """The process and all its descendants, also those that moved to another group."""
    with suppress(psutil.Error):
        leader = psutil.Process(process.pid)
        return [leader, *leader.children(recursive=True)]
    return []


def _signal_group(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def last_lines(log: Path, count: int = 15) -> str:
    """The last lines of a server's log, for an error message."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])

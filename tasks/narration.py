"""What the terminal shows while tasks run: a bar for long work, a line when a stage is done."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from core.stage import StageResult

_console = Console(stderr=True, highlight=False)
_bars = Progress(
    TextColumn("  {task.description:32}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    console=_console,
    transient=True,
)
_lock = threading.Lock()
_enabled = False


@contextmanager
def narrated() -> Iterator[None]:
    """Show what the tasks of this process do, while the block runs."""
    global _enabled
    _enabled = True
    try:
        if _console.is_terminal:
            with _bars:
                yield
        else:
            yield
    finally:
        _enabled = False


class Bar:
    """The progress of one stage; shown from its first step on."""

    def __init__(self, name: str) -> None:
        self._name, self._task = name, None

    def advance(self, done: int, total: int | None) -> None:
        """`done` of `total` steps are done; None: nobody knows how many there are."""
        if not _enabled or not _console.is_terminal:
            return
        with _lock:
            if self._task is None:
                self._task = _bars.add_task(self._name, total=total)
            _bars.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            _bars.remove_task(self._task)


def tell(label: str, result: StageResult) -> None:
    """One line about a finished stage."""
    if not _enabled:
        return
    counts, manifest = result.manifest.counts, result.manifest
    dropped = {**counts.rejected, **counts.failed}
    lost = "".join(f", {count:,} {reason}" for reason, count in dropped.items())
    took = "[dim]cached[/]" if result.cached else f"{manifest.seconds:.1f} s"
    _console.print(f"  [green]✓[/] {label:28} {counts.ok:>9,} ok{lost}  {took}")

"""What the terminal shows while tasks run: a bar for long work, a line when a stage is done."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from core.stage import StageResult

_SECONDS_A_LINE = 30.0
"""Where there is no terminal for bars, how often a line says how far long work is."""


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """E.g. "143/s"; nothing before the first step."""
        return Text(f"{task.speed:,.3g}/s" if task.speed else "")


_console = Console(stderr=True, highlight=False)
_bars = Progress(
    TextColumn("  {task.description:32}"),
    BarColumn(),
    MofNCompleteColumn(),
    _Rate(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
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
    """The progress of one stage; shown from its first step on. Without a terminal, a line now and then."""

    def __init__(self, name: str) -> None:
        self._name, self._task, self._note = name, None, ""
        self._began = self._told = time.monotonic()

    def note(self, words: str) -> None:
        """What to show beside the next step, e.g. "1,203 ok, $0.1250"."""
        self._note = words

    def advance(self, done: int, total: int | None) -> None:
        """`done` of `total` steps are done; None: nobody knows how many there are."""
        if not _enabled:
            return
        if not _console.is_terminal:
            self._tell(done, total)
            return
        with _lock:
            if self._task is None:
                self._task = _bars.add_task(self._name, total=total, note="")
            _bars.update(self._task, completed=done, total=total, note=self._note)

    def _tell(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._told < _SECONDS_A_LINE:
            return
        self._told, rate = now, done / (now - self._began)
        left = "" if total is None or not done else f", {(total - done) / rate:,.0f} s left"
        of = "" if total is None else f" of {total:,}"
        note = f" ({self._note})" if self._note else ""
        _console.print(f"  {self._name}: {done:,}{of}{note}, {rate:,.3g}/s{left}")

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

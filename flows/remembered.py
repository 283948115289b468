"""What a run was begun with, kept in REDRAFT_HOME: a rerun uses it, whatever is configured or champion by then."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from core.config import RunConfig, parse_config
from core.errors import InputError
from core.manifest import Ref
from core.settings import Settings


class Beginning(Settings):
    """What decides what a run computes."""

    kind: Literal["run", "scheduled"]
    """Which flow it is: the whole loop, or one firing of a schedule."""
    config: RunConfig
    start: Ref | None = None
    """The model that a scheduled run goes on from: it may crown another one before it ends."""


def remember(home: Path, run: str, beginning: Beginning) -> None:
    """Keep what a run begins with; a run that is taken up again keeps what it has."""
    if not _path(home, run).exists():
        _write(home, run, beginning)


def recall(home: Path, run: str) -> Beginning:
    """What a run was begun with. Raises InputError if it was not begun here."""
    try:
        return Beginning.model_validate_json(_path(home, run).read_text())
    except OSError as error:
        raise InputError(f"there is no run {run!r} here: `redraft status` lists them ({error.strerror})") from error
    except ValueError as error:
        raise InputError(
            f"another version of redraft began {run!r}: start a new run, it finds what is there"
        ) from error


def with_limits(home: Path, run: str, limits: Mapping[str, float]) -> Beginning:
    """What a run was begun with; the limits on its expert are these from now on. Raises InputError, ConfigError."""
    beginning = recall(home, run)
    values = beginning.config.model_dump(mode="json")
    values["expert"] |= limits
    changed = beginning.model_copy(update={"config": parse_config(values, f"run {run} with new limits")})
    _write(home, run, changed)
    return changed


def hold_start(home: Path, run: str, model: Ref) -> Ref:
    """The model that a run goes on from: `model`, or the one that it held when it was begun."""
    beginning = recall(home, run)
    if beginning.start is not None:
        return beginning.start
    _write(home, run, beginning.model_copy(update={"start": model}))
    return model


def _path(home: Path, run: str) -> Path:
    return home / "runs" / f"{run}.json"


def _write(home: Path, run: str, beginning: Beginning) -> None:
    path = _path(home, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(beginning.model_dump_json(indent=1))
    partial.replace(path)

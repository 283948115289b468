"""What a tracker does, the facts that it takes, and the tracker that does nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import polars as pl
from typing_extensions import override

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A dataset or checkpoint that a run read: full sha256 digest, address, its role there, rows if known."""

    name: str
    digest: str
    uri: str
    context: str
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A registered model version and the checkpoint behind it."""

    version: str
    uri: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class ExpertCall:
    """One request to the expert and what came of it. Images are named, not held. `began`, `ended`: Unix seconds."""

    name: str
    asked: Mapping[str, object]
    answered: Mapping[str, object]
    facts: Mapping[str, str]
    """Shown beside it: model, prompt version, tokens, cost, verdict."""
    began: float
    ended: float
    failed: bool


class Tracking(Protocol):
    """What flows and tasks need of a tracker. The run id "" (no tracker, or it failed) makes a call do nothing."""

    def start_run(self, name: str, *, parent: str | None, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        """Begin a run below `parent`; its id. Nested settings become dotted parameters."""
        raise NotImplementedError

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """The latest run with these tags."""
        raise NotImplementedError

    def resume_run(self, run_id: str) -> None:
        """Set a finished run to running again."""
        raise NotImplementedError

    def finish(self, run_id: str, status: Status) -> None:
        """End a run."""
        raise NotImplementedError

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        raise NotImplementedError

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step."""
        raise NotImplementedError

    def log_curves(self, run_id: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of many steps in few requests: [(step, metrics), ...]."""
        raise NotImplementedError

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInfo]) -> None:
        """What a run read; also noted on the runs above it, or their lists of datasets would stay empty."""
        raise NotImplementedError

    def log_table(self, run_id: str, table: pl.DataFrame, file: str) -> None:
        """A table artifact (`file` ends in .json); logged again, it replaces the earlier one."""
        raise NotImplementedError

    def log_figure(self, run_id: str, figure: "Figure", file: str) -> None:
        """A matplotlib figure as an artifact (`file` ends in .png or .svg)."""
        raise NotImplementedError

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """A text artifact."""
        raise NotImplementedError

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """A file as an artifact."""
        raise NotImplementedError

    def log_calls(self, run_id: str, calls: Sequence[ExpertCall]) -> None:
        """Requests to the expert, as traces of the run."""
        raise NotImplementedError

    def register_model(
        self, name: str, *, checkpoint_uri: str, run_id: str, digest: str, tags: Mapping[str, str]
    ) -> str:
        """Register a checkpoint that stays in the store; its version, the known one if the digest is registered."""
        raise NotImplementedError

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version."""
        raise NotImplementedError

    def champion(self, name: str) -> ModelVersion | None:
        """The version that the alias `champion` points at. Raises ServerError: runs start from what this says."""
        raise NotImplementedError


class NullTracker(Tracking):
    """Tracking is off."""

    @override
    def start_run(self, name: str, *, parent: str | None, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        return ""

    @override
    def find_run(self, tags: Mapping[str, str]) -> str | None:
        return None

    @override
    def resume_run(self, run_id: str) -> None:
        return None

    @override
    def finish(self, run_id: str, status: Status) -> None:
        return None

    @override
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        return None

    @override
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        return None

    @override
    def log_curves(self, run_id: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        return None

    @override
    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInfo]) -> None:
        return None

    @override
    def log_table(self, run_id: str, table: pl.DataFrame, file: str) -> None:
        return None

    @override
    def log_figure(self, run_id: str, figure: "Figure", file: str) -> None:
        return None

    @override
    def log_text(self, run_id: str, text: str, file: str) -> None:
        return None

    @override
    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        return None

    @override
    def log_calls(self, run_id: str, calls: Sequence[ExpertCall]) -> None:
        return None

    @override
    def register_model(
        self, name: str, *, checkpoint_uri: str, run_id: str, digest: str, tags: Mapping[str, str]
    ) -> str:
        return ""

    @override
    def set_alias(self, name: str, alias: str, version: str) -> None:
        return None

    @override
    def champion(self, name: str) -> ModelVersion | None:
        return None

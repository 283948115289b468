"""What a run leaves behind for people: the shape of summary.json and of the report.

Fill a `RunSummary` at the end of a run (lists may be empty: the report leaves out what is not there) and hand it with a
list of `GalleryItem`s to `flows.report.write_report`. `RunSummary.model_validate_json` reads summary.json back.
Images are no part of summary.json.
"""

import hashlib
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from core.config import RunConfig
from core.errors import InputError
from core.manifest import canonical_json

_LIBRARIES = ("redraft", "torch", "transformers", "prefect", "mlflow", "polars", "openai")
Counts = dict[str, int]


class Record(BaseModel):
    """Base: frozen, unknown keys refused, infinities and NaN are null in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="null")


class Machine(Record):
    """Where it ran."""

    host: str
    platform: str
    """e.g. 'Linux 6.1 x86_64'"""
    cpus: int
    memory_gb: float
    accelerator: str | None = None


class ArmResult(Record):
    """One model (arm) decoded in one setting over one split.

    The report's table has a row for each (arm, refining) and a column for each `setting`; arms keep the order in which
    they first appear. Put the paper's own arms first and the baseline last, e.g. base, stage 1, round 1, round 2,
    mask-predict.
    """

    arm: str
    refining: bool
    """Whether the decoder may overwrite tokens that it has already written."""
    tokens_per_step: int
    extra_steps: int = 0
    """Refining steps after the last mask is gone: 4 gives the column '8+4'."""
    nfe: float
    """Forwards of the model for one answer, mean over the samples."""
    train_steps: int = 0
    """Optimizer steps in the model's whole history."""
    score: float
    """The headline metric, 0-100 (`RunSummary.metric` names it)."""
    low: float | None = None
    """Lower end of the 95 % interval of `score`."""
    high: float | None = None
    samples: int = 0
    seconds: float | None = None
    """Wall time of the decoding."""
    strict_precision: float | None = None
    fact_recall: float | None = None
    fact_f1: float | None = None
    place_accuracy: float | None = None
    place_chance: float | None = None
    """What `place_accuracy` would be if places were guessed."""
    binding_error: float | None = None
    validity: float | None = None
    repeat_rate: float | None = None
    overlap_f1: float | None = None

    @property
    def setting(self) -> str:
        """'8', or '8+4' with four extra steps."""
        return f"{self.tokens_per_step}+{self.extra_steps}" if self.extra_steps else str(self.tokens_per_step)


class Control(Record):
    """Score of an answer that needs no model: empty caption, another scene's caption, the true caption."""

    name: str
    score: float


class StageRecord(Record):
    """One stage of the run. Where a stage has many shards, give one record with the sums, or one a shard.

    in = ok + rejected + failed must hold for stages that count rows; leave `rows_in` null for the others (training).
    """

    stage: str
    """e.g. 'draft', 'finetune'"""
    label: str = ""
    """What tells it from its sisters, e.g. 'round 1' or 'stage 1'."""
    version: int = 1
    key: str
    """The stage key (sha256): names the output folder."""
    uri: str = ""
    """The output folder in the store."""
    digest: str
    """Digest of the output."""
    parents: list[str] = []
    """Digests of the inputs."""
    kind: str = ""
    """What came out: 'samples', 'checkpoint', ..."""
    seconds: float
    cached: bool = False
    """The output was there already and nothing was computed."""
    rows_in: int | None = None
    ok: int | None = None
    rejected: Counts = {}
    """Rows at fault, by reason."""
    failed: Counts = {}
    """Rows that we could not process, by reason."""


class ExpertRecord(Record):
    """What the expert of one round was asked, answered and cost."""

    label: str
    """e.g. 'round 1'"""
    model: str
    prompt_version: str = ""
    drafts: int
    verdicts: Counts = {}
    """right / revised / unusable / failed"""
    segments: int = 0
    accepted: Counts = {}
    """Accepted segments by tier: 'equal', 're-diff'."""
    segment_reasons: Counts = {}
    """Segments that were not accepted, by reason."""
    requests: int = 0
    """Requests sent in this run."""
    from_ledger: int = 0
    """Replies that were already paid for."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """Null where no price is known."""
    seconds: float | None = None


class DecodingRecord(Record):
    """What the drafts of one round and setting went through, token by token (means over its drafts)."""

    label: str
    """e.g. 'round 1'"""
    setting: str
    """e.g. '8 refine'"""
    drafts: int
    nfe: float
    overwritten: float
    """Visible tokens that were replaced."""
    oscillations: float
    """Replacements by the token that stood there before the last one."""
    last_change: float
    """Forwards after which the draft stayed as it is."""
    settled: float
    """Share of drafts that a forward confirmed unchanged before the end."""
    repair: float | None = None
    """P(right at the end | wrong when revealed), by the expert's revision."""
    harm: float | None = None
    """P(wrong at the end | right when revealed)."""


class Curve(Record):
    """A training curve: loss against optimizer step."""

    label: str
    """e.g. 'stage 1', 'round 2', 'mask-predict'"""
    steps: list[int]
    loss: list[float]


class RunSummary(Record):
    """Everything that summary.json holds."""

    run: str
    """Name of the run, as `redraft status` shows it."""
    kind: Literal["run", "scheduled"] = "run"
    """The whole loop, or one firing of a schedule."""
    status: Literal["done", "partial", "failed"] = "done"
    started: datetime
    seconds: float
    """Wall time of the whole run."""
    command: str = ""
    config_name: str
    config: dict[str, JsonValue] = {}
    """The resolved configuration, nested."""
    config_hash: str = ""
    inputs_digest: str = ""
    """Digest of the files that the configuration names, "" if it names none."""
    seed: int
    machine: Machine
    versions: dict[str, str] = {}
    metric: str = "score"
    """Name of what `ArmResult.score` holds."""
    metric_note: str = ""
    """One sentence that says what it means."""
    main_arm: str | None = None
    """The arm that the run is about (default: the last one before the baseline)."""
    baseline_arm: str | None = "mask-predict"
    """The arm that it is compared with at equal compute."""
    results: list[ArmResult] = []
    controls: list[Control] = []
    stages: list[StageRecord] = []
    experts: list[ExpertRecord] = []
    decodings: list[DecodingRecord] = []
    curves: list[Curve] = []
    notes: list[str] = []
    """Sentences for the reader, e.g. 'round 2 gained nothing: stopped by patience'."""


class GallerySegment(Record):
    """A correction of the expert: chars [start, end) of the draft become `target`.

    `reason` says why it was rejected, null: accepted. A segment that was not found has start = -1.
    """

    org: str
    target: str
    start: int = -1
    end: int = -1
    reason: str | None = None


class GalleryItem(Record):
    """One draft, what the expert made of it, and what the final model writes for the same image."""

    sample_id: str
    image: Annotated[bytes | None, Field(exclude=True, repr=False)] = None
    """The stored image, encoded (PNG, JPEG, ...)."""
    prompt: str
    reference: str
    draft: str
    draft_label: str = "Draft"
    """e.g. 'Draft of stage 1, 8 tokens a step'"""
    verdict: str = ""
    segments: list[GallerySegment] = []
    revised: str | None = None
    """The draft with the accepted segments applied, or null."""
    final: str | None = None
    """What the final model writes."""
    final_label: str = "Final model"
    score_draft: float | None = None
    score_revised: float | None = None
    score_final: float | None = None


def config_hash(config: RunConfig) -> str:
    """16 hex digits that change with any setting that may change a result."""
    decisive = config.model_dump(mode="json", exclude={"place", "compute"})
    return hashlib.sha256(canonical_json(decisive)).hexdigest()[:16]


def machine() -> Machine:
    """This machine."""
    return Machine(
        host=platform.node(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpus=psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
    )


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return {name: version(name) for name in _LIBRARIES}


def read_summary(path: Path) -> RunSummary:
    """A run's summary. Raises InputError if there is none."""
    try:
        return RunSummary.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"no summary of a run at {path}: {error}") from error

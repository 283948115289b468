"""The configuration of a run: a flat TOML into frozen models. An unknown key is an error; every key takes effect.

Import-light on purpose: the command line reads it before it needs torch or polars.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from core.addresses import database_address, plain_address
from core.corruption.settings import MaskSettings, ObjectiveSettings, RefineSettings, RevisionSettings
from core.decoding.settings import DecodeSettings
from core.errors import ConfigError
from core.expert.settings import ExpertSettings
from core.ingest.settings import FormatName, IngestSettings
from core.models.settings import Dtype, ModelSettings
from core.settings import Settings
from core.training.settings import TrainSettings, VisionSettings

PRESETS = ("scenes", "smoke", "real", "checkpoint")


class DataSettings(Settings):
    """Where samples come from and how they are dealt out."""

    source: Literal["scenes"] | FormatName = "scenes"
    """scenes: the procedural world. Otherwise the format of the file data.path; auto: it is found out."""
    path: str = ""
    """The file."""
    images: str = ""
    """The folder, or s3://bucket/prefix, that the file's image paths are relative to."""
    train: int = Field(default=8000, ge=1)
    """Scenes (or rows of the file's train split, at most) that base and stage 1 learn from."""
    captions: int = Field(default=2, ge=1)
    """Captions a scene."""
    dev: int = Field(default=128, ge=1)
    """Samples that choose the champion."""
    test: int = Field(default=256, ge=1)
    """Samples that the report's numbers come from; nothing is chosen on them."""
    pool: int = Field(default=100_000, ge=1)
    """Scenes of the train split that exist at all: a scheduled run says so when they are used up."""


def _decoders(names: tuple[str, ...]) -> list[DecodeSettings]:
    """The decoder settings of these names. Raises ConfigError: none, an unknown one, an unusual spelling, one twice."""
    parsed = [DecodeSettings.parse(name) for name in names]
    if not parsed:
        raise ConfigError("give at least one decoder setting, e.g. '8 refine'")
    for name, setting in zip(names, parsed, strict=True):
        if setting.name != name:
            raise ConfigError(f"write the decoder setting {name!r} as {setting.name!r}")
    if len(set(names)) < len(names):
        raise ConfigError(f"a decoder setting is there twice: {', '.join(names)}")
    return parsed


class PairSettings(Settings):
    """ViCrit-style hallucination pairs."""

    per_sample: int = Field(default=4, ge=1)
    """Pairs a caption at most, each with exactly one fact made wrong; the expert makes one."""
    kinds: tuple[Literal["object", "attribute", "count", "place", "relation"], ...] = (
        "object",
        "attribute",
        "count",
        "place",
        "relation",
    )
    """Which kinds of facts are made wrong, in equal shares where the caption allows."""
    balance: bool = False
    """Captions outside the scene world: drop pairs of the frequent kinds until all kinds are equally frequent."""
    by: Literal["rule", "expert"] = "rule"
    """Who makes them: rules (the scene grammar's, or those of a lexicon), or the expert endpoint."""


class DraftSettings(Settings):
    """How the model drafts what the expert revises."""

    settings: tuple[str, ...] = ("2 refine", "4 refine", "8 refine")
    """Decoder settings; every sample is drafted at each of them."""
    batch_size: int = Field(default=64, ge=1)
    """Rows decoded together."""
    shard_size: int = Field(default=512, ge=1)
    """Samples a shard: the unit that is resumed and re-run."""
    dtype: Dtype = "auto"
    """Precision that the model drafts in; auto: that of its checkpoint."""

    @model_validator(mode="after")
    def _settings_parse(self) -> Self:
        _decoders(self.settings)
        return self


class BaselineSettings(TrainSettings):
    """The mask-predict baseline: base, trained on for as long as stage 1 and all rounds together."""

    steps: int = Field(default=0, ge=0)
    """Updates, if more than those."""


class RoundSettings(Settings):
    """Online self-correction."""

    n: int = Field(default=2, ge=0)
    """Rounds of draft, revise, assemble, fine-tune, evaluate."""
    samples: int = Field(default=1500, ge=1)
    """New samples a round."""
    replay: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Share of stage 1 rows among the rows of stage 2."""
    patience: int = Field(default=2, ge=1)
    """Stop after so many rounds in a row that do not beat the best one."""
    promote_on: str = "8 refine"
    """Decoder setting whose dev result, with its interval, decides about the champion."""

    @model_validator(mode="after")
    def _setting_parses(self) -> Self:
        _decoders((self.promote_on,))
        return self


class EvaluateSettings(Settings):
    """What is measured on the test split."""

    settings: tuple[str, ...] = (
        "1 refine",
        "2 refine",
        "4 refine",
        "8 refine",
        "4+4 refine",
        "8+4 refine",
        "1 freeze",
        "2 freeze",
        "4 freeze",
        "8 freeze",
    )
    """Decoder settings of the final table."""
    batch_size: int = Field(default=128, ge=1)
    """Rows decoded together."""

    @model_validator(mode="after")
    def _settings_parse(self) -> Self:
        policies = [parsed.policy for parsed in _decoders(self.settings)]
        if "freeze" not in policies:
            raise ValueError("one setting at least must be frozen, e.g. '8 freeze': base is not asked to refine")
        return self

    traces: int = Field(default=16, ge=0)
    """Samples whose decoding is recorded step by step."""
    gallery: int = Field(default=48, ge=1)
    """Samples of each round that its model answers for the report's gallery."""


DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class ComputeSettings(Settings):
    """This machine. Nothing here changes a result's key."""

    threads: int = Field(default=2, ge=1)
    """Processor threads; work that runs side by side shares them."""
    processes: int = Field(default=1, ge=1)
    """Processes that train a model together, each with a share of its weights: on a machine with GPUs, one a GPU."""
    devices: tuple[DeviceName, ...] = Field(default=("auto",), min_length=1)
    """Where models run, e.g. "cuda:0", "cuda:1"; auto: on every GPU there is, else on the processor."""
    one_model: bool = False
    """One model on a device at a time, for GPUs that hold no second: none is trained or measured beside another.

    Several `processes` ask for it too: they fill the devices that they train on.
    """

    @property
    def one_at_a_time(self) -> bool:
        """Whether no model is trained or measured beside another."""
        return self.one_model or self.processes > 1

    @property
    def beside(self) -> int:
        """Threads of one of two pieces of work that run side by side."""
        return self.threads if self.one_at_a_time else max(1, self.threads // 2)


_CREDENTIALS = {
    "store": "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3_endpoint": "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "prefect_url": "user and password go into PREFECT_API_AUTH_STRING, a key into PREFECT_API_KEY",
    "mlflow_url": "user and password go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""Where the credentials of a service come from: the environment."""


class PlaceSettings(Settings):
    """Where state lives and which servers are used. Empty: local, started when needed."""

    store: str = ""
    """Folder or s3://bucket/prefix of datasets, checkpoints and images; empty: REDRAFT_HOME/store."""
    s3_endpoint: str = ""
    """Endpoint of an S3 service other than Amazon's."""
    database: str = ""
    """SQLAlchemy URL of claims and ledger, its password in PGPASSWORD or ~/.pgpass; empty: SQLite in REDRAFT_HOME."""
    prefect_url: str = ""
    """API of a running Prefect server, e.g. http://127.0.0.1:4200/api."""
    mlflow_url: str = ""
    """Address of a running MLflow server."""
    experiment: str = "redraft"
    """MLflow experiment."""

    @field_validator("database")
    @classmethod
    def _holds_no_password(cls, address: str) -> str:
        return database_address(address, name="place.database")

    @field_validator("store", "s3_endpoint", "prefect_url", "mlflow_url")
    @classmethod
    def _says_only_where(cls, address: str, info: ValidationInfo) -> str:
        is_folder = info.field_name == "store" and ("://" not in address or address.startswith("file://"))
        key = _CREDENTIALS[info.field_name or ""]
        return address if is_folder else plain_address(address, name=f"place.{info.field_name}", instead=key)


class RunConfig(Settings):
    """Everything that a run needs to know."""

    name: str = "scenes"
    """Name of the registered model and of what it learns from."""
    seed: int = Field(default=0, ge=0)
    """Every random stream derives from it."""
    data: DataSettings = DataSettings()
    ingest: IngestSettings = IngestSettings()
    model: ModelSettings = ModelSettings()
    pair: PairSettings = PairSettings()
    mask: MaskSettings = MaskSettings()
    """Corruption of the base and of the mask-predict baseline."""
    revision: RevisionSettings = RevisionSettings()
    """Corruption of stage 1."""
    objective: ObjectiveSettings = ObjectiveSettings()
    vision: VisionSettings = VisionSettings()
    base: TrainSettings = TrainSettings()
    stage1: TrainSettings = TrainSettings()
    draft: DraftSettings = DraftSettings()
    expert: ExpertSettings = ExpertSettings()
    refine: RefineSettings = RefineSettings()
    stage2: TrainSettings = TrainSettings()
    control: BaselineSettings = BaselineSettings()
    rounds: RoundSettings = RoundSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    compute: ComputeSettings = ComputeSettings()
    place: PlaceSettings = PlaceSettings()

    def check_trainings(self) -> None:
        """Raise ConfigError if several processes shall train with an optimizer that cannot be dealt out."""
        for name, settings in self.trainings.items():
            if self.compute.processes > 1 and settings.optimizer == "muon":
                raise ConfigError(
                    f"{name}.optimizer: Muon needs whole matrices, and compute.processes deals them out: "
                    f"set {name}.optimizer = 'adamw', or compute.processes = 1"
                )

    @property
    def trainings(self) -> dict[str, TrainSettings]:
        """Those that a run of this configuration has, by the names of their groups of settings."""
        rounds = {"stage2": self.stage2} if self.rounds.n else {}
        found = {"base": self.base, "stage1": self.stage1, **rounds, "control": self.baseline}
        return {name: settings for name, settings in found.items() if settings.steps}

    @property
    def baseline(self) -> TrainSettings:
        """The mask-predict baseline's training: never fewer steps than stage 1 and all rounds together."""
        steps = self.stage1.steps + self.rounds.n * self.stage2.steps
        return self.control.model_copy(update={"steps": max(self.control.steps, steps)})


def config_path(name_or_file: str) -> Path:
    """The TOML of a shipped preset, or the user's own file. Raises ConfigError if there is neither."""
    if name_or_file in PRESETS:
        return Path(str(files("flows") / "presets" / f"{name_or_file}.toml"))
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    raise ConfigError(f"no configuration {name_or_file!r}: give a TOML file or one of {', '.join(PRESETS)}")


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file as plain values. Raises ConfigError with the line of a syntax error."""
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(values: dict[str, Any], origin: str) -> RunConfig:
    """Plain values as a RunConfig. Raises ConfigError that names every wrong key and where it came from."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{origin} is not a valid configuration:\n" + "\n".join(lines)) from error

"""The flows `foundation` (samples, a tokenizer and an untrained model, the base) and `stage_one` (ReDiff's stage 1)."""

from prefect import flow

from core.config import RunConfig
from core.errors import ConfigError
from core.manifest import Ref, has_table, read_manifest
from core.settings import Settings
from data_contracts import HallucinationPairs
from flows.gathering import only
from tasks.corrupt import MaskConfig, RevisionConfig, corrupt, mask
from tasks.data import SampleSlice, SceneSlice, ingest, synth, take
from tasks.finetune import FinetuneConfig, ModelConfig, VisionConfig, create_model, finetune, warm_up
from tasks.pair import PairConfig, pair
from tasks.workplace import Workplace


class Foundation(Settings):
    """What stage 1, the rounds and the baseline start from."""

    samples: Ref
    """The train samples of base and stage 1."""
    dev: Ref
    test: Ref
    blank: Ref
    """The untrained model and its tokenizer."""
    base: Ref
    ingested: Ref | None = None
    """All samples of the user's file."""
    used: int
    """Scenes (or rows of the file's train split) that `samples` took; rounds take those after them."""


@flow(name="foundation", flow_run_name="foundation")
def foundation(config: RunConfig, place: Workplace, parent: str) -> Foundation:
    """Data -> base (mask-predict)."""
    ingested = _ingested(config, place, parent)
    used = _train_rows(config, place, ingested)
    samples = samples_of(config, place, "train", 0, used, config.data.captions, ingested, parent)
    dev = samples_of(config, place, "dev", 0, config.data.dev, 1, ingested, parent)
    test = samples_of(config, place, "test", 0, config.data.test, 1, ingested, parent)
    blank = only(create_model.submit(place, ModelConfig.of(config), samples, parent=parent), "model")
    base = _base(config, place, blank, samples, parent)
    return Foundation(samples=samples, dev=dev, test=test, blank=blank, base=base, ingested=ingested, used=used)


class StageOne(Settings):
    """What the rounds go on from."""

    rows: Ref
    """Training examples: a share of them is mixed into stage 2."""
    model: Ref
    """The model of round 0."""


@flow(name="stage_one", flow_run_name="stage_one")
def stage_one(config: RunConfig, place: Workplace, ground: Foundation, threads: int, parent: str) -> StageOne:
    """Base -> stage 1: it learns to mend syntax noise and hallucinations."""
    rows = _stage1_rows(config, place, ground.blank, ground.samples, parent)
    tuning = FinetuneConfig(name="stage1", train=config.stage1, objective=config.objective, seed=config.seed)
    model = only(
        finetune.submit(
            place, tuning, ground.base, rows, threads=threads, processes=config.compute.processes, parent=parent
        ),
        "stage 1",
    )
    return StageOne(rows=rows, model=model)


def samples_of(
    config: RunConfig,
    place: Workplace,
    split: str,
    start: int,
    count: int,
    captions: int,
    ingested: Ref | None,
    parent: str,
) -> Ref:
    """Samples [start, start + count) of a split, drawn from the scene world or taken from the user's file."""
    if ingested is None:
        slice_ = SceneSlice(split=split, start=start, count=count, captions=captions, seed=config.seed)
        return only(synth.submit(place, slice_, parent=parent), f"{split} samples")
    settings = SampleSlice(split=split, start=start, count=count)
    return only(take.submit(place, ingested, settings, parent=parent), f"{split} samples")


def ingest_file(config: RunConfig, place: Workplace, parent: str) -> Ref:
    """All usable rows of the user's file."""
    if not config.data.path:
        raise ConfigError(f"data.source = '{config.data.source}' needs a file: --data FILE, or data.path")
    future = ingest.submit(place, config.data, config.ingest, threads=config.compute.threads, parent=parent)
    return only(future, "ingestion")


def _ingested(config: RunConfig, place: Workplace, parent: str) -> Ref | None:
    if config.data.source == "scenes":
        return None
    if config.vision.steps:
        raise ConfigError(
            "vision.steps: a file does not say which region of an image its words speak of, as the scene world does: "
            "set vision.steps = 0"
        )
    found = ingest_file(config, place, parent)
    splits = read_manifest(place.store, found.uri).facts
    for split in ("train", "dev", "test"):
        if not splits.get(split):
            raise ConfigError(
                f"none of the {sum(splits.values())} usable rows of {config.data.path} fell into the {split} split: "
                "give more images, or change ingest.train and ingest.dev"
            )
    return found


def _train_rows(config: RunConfig, place: Workplace, ingested: Ref | None) -> int:
    """Rows for base and stage 1: what the rounds will need is left for them."""
    if ingested is None:
        return config.data.train
    rows = int(read_manifest(place.store, ingested.uri).facts["train"])
    free = rows - config.rounds.n * config.rounds.samples
    if free < 1:
        raise ConfigError(
            f"{config.data.path} has {rows} usable train rows, but {config.rounds.n} rounds of {config.rounds.samples} "
            "new samples leave none for base and stage 1: lower rounds.samples or rounds.n"
        )
    return min(config.data.train, free)


def _base(config: RunConfig, place: Workplace, blank: Ref, samples: Ref, parent: str) -> Ref:
    """The mask-predict model. With base.steps = 0 it is what the run starts from, as it is."""
    if config.base.steps == 0:
        return _warmed_up(config, place, blank, samples, parent)
    masking = MaskConfig(mask=config.mask, response_length=config.model.response_length, seed=config.seed)
    rows = only(mask.submit(place, masking, blank, [samples], parent=parent), "masking")
    start = _warmed_up(config, place, blank, samples, parent)
    tuning = FinetuneConfig(name="base", train=config.base, objective=config.objective, seed=config.seed)
    return only(
        finetune.submit(
            place,
            tuning,
            start,
            rows,
            threads=config.compute.threads,
            processes=config.compute.processes,
            parent=parent,
        ),
        "base",
    )


def _warmed_up(config: RunConfig, place: Workplace, blank: Ref, samples: Ref, parent: str) -> Ref:
    if config.vision.steps == 0:
        return blank
    warming = VisionConfig(vision=config.vision, response_length=config.model.response_length, seed=config.seed)
    future = warm_up.submit(place, warming, blank, samples, threads=config.compute.threads, parent=parent)
    return only(future, "vision warm-up")


def pair_samples(config: RunConfig, place: Workplace, samples: Ref, parent: str) -> Ref:
    """Hallucination pairs for samples that came without."""
    from_world = read_manifest(place.store, samples.uri).producer.stage == "synth"
    pairing = PairConfig.of(config.pair, config.expert, seed=config.seed, scenes=from_world)
    return only(pair.submit(place, pairing, config.expert, samples, parent=parent), "pairing")


def _stage1_rows(config: RunConfig, place: Workplace, blank: Ref, samples: Ref, parent: str) -> Ref:
    pairs = (
        samples if has_table(place.store, samples, HallucinationPairs) else pair_samples(config, place, samples, parent)
    )
    corruption = RevisionConfig(
        revision=config.revision, response_length=config.model.response_length, seed=config.seed
    )
    return only(corrupt.submit(place, corruption, blank, samples, pairs, parent=parent), "corruption")

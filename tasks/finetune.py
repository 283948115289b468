"""Models: a new one, and training on materialised rows."""

import json
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import SerializerFunctionWrapHandler, field_serializer, model_serializer

from core.config import RunConfig
from core.corruption.settings import ObjectiveSettings
from core.fingerprint import checkpoint_digest
from core.heap import return_memory
from core.manifest import Ref, read_manifest, read_table
from core.models.create import create_denoiser
from core.models.denoiser import TrainableDenoiser, load_denoiser, save_denoiser
from core.models.settings import ModelSettings, PromptAttention
from core.models.special_tokens import set_system_turn
from core.settings import Settings
from core.stage import Output
from core.training.job import MODEL, TrainJob
from core.training.loop import TrainResult
from core.training.settings import CURVES_FILE, SAVES_MEMORY, TrainSettings, VisionSettings, dump_settings
from core.training.vision import warm_up_vision
from data_contracts import Samples, TrainingExamples
from tasks.compute import load_model, train_on, use_threads
from tasks.running import run, stage_of
from tasks.workplace import Workplace

_LEFT_OUT = {"steps_per_second", "padding"}
"""Metrics that MLflow has, and that would change the digest of a checkpoint: of an equal training, or an older one."""


class ModelConfig(Settings):
    """What decides a new model."""

    model: ModelSettings
    seed: int
    checkpoint_sha256: str = ""
    """Digest of the user's checkpoint, if the run starts from one."""
    taken_in: int | None = None
    """Version of what is kept of such a checkpoint: as the stage's, for these outputs alone."""

    @model_serializer(mode="wrap")
    def _keeps_its_key(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A model of which nothing is said that came later has the key that it had before."""
        found = {name: value for name, value in dump(self).items() if (name, value) != ("taken_in", None)}
        unset = {name for name in ("prompt_attention", "system") if getattr(self.model, name) is None}
        return found | {"model": {name: value for name, value in found["model"].items() if name not in unset}}

    @classmethod
    def of(cls, config: RunConfig) -> "ModelConfig":
        """The part of a run's configuration that matters here: sizes and seed are of no matter to a checkpoint."""
        model = config.model
        if not model.checkpoint:
            return cls(model=model, seed=config.seed)
        given = ModelSettings(checkpoint=model.checkpoint, prompt_attention=model.prompt_attention, system=model.system)
        return cls(model=given, seed=0, checkpoint_sha256=checkpoint_digest(model.checkpoint), taken_in=2)


class AttentionConfig(Settings):
    """What a model's prompt may see from now on."""

    prompt_attention: PromptAttention


class VisionConfig(Settings):
    """What decides the vision warm-up."""

    vision: VisionSettings
    response_length: int
    seed: int


class FinetuneConfig(Settings):
    """What decides a training."""

    name: str
    """base, stage1, stage2 or control."""
    train: TrainSettings
    objective: ObjectiveSettings
    seed: int

    @field_serializer("train")
    def _keeps_its_key(self, train: TrainSettings) -> dict[str, Any]:
        """What saves memory is of no matter: a training that did not fit goes on, with less, where it stopped."""
        return {name: value for name, value in dump_settings(train).items() if name not in SAVES_MEMORY}


def prompted(denoiser: TrainableDenoiser, model: ModelSettings) -> None:
    """Give a model the prompt attention and the system turn that are asked for."""
    if model.prompt_attention is not None:
        denoiser.attend(model.prompt_attention)
    if model.system is not None:
        set_system_turn(denoiser.tokenizer, model.system)


@task(cache_policy=NO_CACHE, task_run_name="create model")
def create_model(place: Workplace, config: ModelConfig, samples: Ref, *, parent: str) -> State:
    """The user's checkpoint, or an untrained model and its tokenizer -> checkpoint."""

    def compute(output: Output) -> None:
        if config.model.checkpoint:
            denoiser = load_denoiser(config.model.checkpoint)
        else:
            frame = read_table(place.store, samples, Samples)
            texts = [*frame["prompt"].unique().sort(), *frame["reference"]]
            denoiser = create_denoiser(config.model, texts, seed=config.seed)
        prompted(denoiser, config.model)
        save_denoiser(denoiser, output.work / "model")
        output.write_folder(output.work / "model")
        output.commit(rows_in=1, ok=1)

    reads = [] if config.model.tokenizer == "scenes" else [samples]
    stage = stage_of("create_model", config, {"samples": reads}, kind="checkpoint")
    return run(place, stage, compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="{config.prompt_attention} attention")
def switch_attention(place: Workplace, config: AttentionConfig, model: Ref, *, parent: str) -> State:
    """A model -> the same weights with another prompt attention, for the training that comes next."""

    def compute(output: Output) -> None:
        denoiser = load_model(place, model)
        denoiser.attend(config.prompt_attention)
        save_denoiser(denoiser, output.work / "model")
        output.write_folder(output.work / "model")
        steps = int(read_manifest(place.store, model.uri).facts.get("train_steps", 0))
        output.commit(rows_in=1, ok=1, facts={"train_steps": steps})

    stage = stage_of("switch_attention", config, {"model": [model]}, kind="checkpoint")
    return run(place, stage, compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="warm up vision")
def warm_up(place: Workplace, config: VisionConfig, model: Ref, samples: Ref, *, threads: int, parent: str) -> State:
    """An untrained model -> one whose image regions name the words that speak of them."""

    def compute(output: Output) -> None:
        use_threads(threads)
        denoiser = load_model(place, model)
        rows = read_table(place.store, samples, Samples)
        loss = warm_up_vision(
            denoiser,
            rows,
            config.vision,
            response_length=config.response_length,
            load_image=place.images,
            seed=config.seed,
            on_loss=lambda step, value: output.progress(step, config.vision.steps, {}),
        )
        save_denoiser(denoiser, output.work / "model")
        output.write_folder(output.work / "model")
        output.commit(rows_in=rows.height, ok=rows.height, facts={"loss": loss})

    inputs = {"model": [model], "samples": [samples]}
    stage = stage_of("warm_up", config, inputs, kind="checkpoint")
    return run(place, stage, compute, parent=parent)


def curves_of(result: TrainResult) -> str:
    """The JSON of a whole training's curve, whether it was interrupted or not; timings are left out."""
    kept = [
        (step, {name: value for name, value in metrics.items() if name not in _LEFT_OUT})
        for step, metrics in result.curve
    ]
    return json.dumps(kept)


@task(cache_policy=NO_CACHE, task_run_name="finetune {config.name}")
def finetune(
    place: Workplace,
    config: FinetuneConfig,
    model: Ref,
    examples: Ref,
    *,
    threads: int,
    processes: int = 1,
    parent: str,
) -> State:
    """A model and training examples -> the trained model. Goes on from its last checkpoint after a crash."""

    def compute(output: Output) -> None:
        rows = read_table(place.store, examples, TrainingExamples)

        def note(step: int, metrics: Mapping[str, float]) -> None:
            output.progress(step, config.train.steps, metrics)
            return_memory()

        job = TrainJob(
            model=place.local_folder(model), train=config.train, objective=config.objective, seed=config.seed,
            threads=max(1, threads // processes), work=output.work,
        )  # fmt: skip
        result = train_on(place, job, rows, processes=processes, on_metrics=note)
        output.write_folder(output.work / MODEL)
        output.write_file(CURVES_FILE, curves_of(result).encode())
        before = int(read_manifest(place.store, model.uri).facts.get("train_steps", 0))
        facts = {"train_steps": before + config.train.steps, "training_seconds": result.seconds, **result.metrics}
        output.reject_frame(result.rejects)
        output.commit(rows_in=rows.height, ok=rows.height - result.rejects.height, facts=facts)

    inputs = {"model": [model], "examples": [examples]}
    stage = stage_of("finetune", config, inputs, kind="checkpoint")
    return run(place, stage, compute, parent=parent)

"""What a trained checkpoint says of its training, and where an interrupted training goes on."""

import json
from collections.abc import Callable

import pytest
import torch
from prefect.logging import disable_run_logger

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.manifest import Kind, Ref
from core.models.denoiser import load_denoiser, save_denoiser
from core.settings import Settings
from core.stage import Output, Stage, run_stage
from core.training.loop import TrainResult, train
from core.training.settings import TrainSettings
from data_contracts import TrainingExamples
from tasks import finetune as tasks_finetune
from tasks.compute import train_on
from tasks.finetune import FinetuneConfig, curves_of, finetune
from tasks.workplace import Workplace
from tests.core.models.checkpoints import published
from tests.core.models.test_published_use import LENGTH, samples
from tests.core.training.test_loop import SETTINGS, Copies, Killed, kill_at, small_model


def test_a_killed_and_resumed_training_leaves_the_bytes_of_one_that_was_not(tmp_path):
    whole = train(small_model(), Copies(), SETTINGS)
    with pytest.raises(Killed):
        train(small_model(), Copies(), SETTINGS, checkpoint_dir=tmp_path, on_metrics=kill_at(12))
    resumed = train(small_model(), Copies(), SETTINGS, checkpoint_dir=tmp_path)
    assert resumed.resumed_at == 10
    assert curves_of(resumed) == curves_of(whole)
    assert [step for step, _ in json.loads(curves_of(resumed))] == [4, 8, 12]
    assert not {"steps_per_second", "padding"} & json.loads(curves_of(whole))[0][1].keys()


def given(place: Workplace, kind: Kind, write: Callable[[Output], None]) -> Ref:
    """What a stage before has left."""
    stage = Stage(name=f"given_{kind}", version=1, config=Settings(), kind=kind)
    return run_stage(place.store, place.claims, stage, write, work_root=place.work_root).ref


def test_a_training_that_did_not_fit_goes_on_with_settings_that_need_less(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    place = Workplace(
        home=tmp_path / "home", store_uri=str(tmp_path / "store"), database_url=f"sqlite:///{tmp_path}/state.db"
    )
    model = load_denoiser(published(tmp_path, "llada_tiny"))
    rows = mask_rows(
        samples([None] * 6), model.tokenizer, settings=MaskSettings(), response_length=LENGTH, seed=0
    ).examples

    def write_model(output: Output) -> None:
        save_denoiser(model, output.work / "model")
        output.write_folder(output.work / "model")
        output.commit(rows_in=1, ok=1)

    def write_rows(output: Output) -> None:
        output.write(TrainingExamples, rows)
        output.commit(rows_in=rows.height)

    inputs = given(place, "checkpoint", write_model), given(place, "dataset", write_rows)
    settings = TrainSettings(
        steps=5, batch_size=4, lr=1e-3, optimizer="adamw", log_every=1, checkpoint_every=1, micro_batch=2
    )

    def training(settings: TrainSettings, until: int) -> list[TrainResult]:
        results = []

        def cut(*args, on_metrics, **options):
            results.append(train_on(*args, on_metrics=kill_at(until), **options))
            return results[-1]

        monkeypatch.setattr(tasks_finetune, "train_on", cut)
        config = FinetuneConfig(name="stage1", train=settings, objective=ObjectiveSettings(), seed=0)
        with disable_run_logger():
            finetune.fn(place, config, *inputs, threads=1, parent="")
        return results

    with pytest.raises(Killed):
        training(settings, until=3)
    (result,) = training(settings.model_copy(update={"micro_batch": 1, "gradient_checkpointing": True}), until=6)
    assert result.resumed_at == 2

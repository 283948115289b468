"""Devices are shared out, and a model stays loaded from shard to shard."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import torch

from core.config import ComputeSettings
from core.corruption.settings import ObjectiveSettings
from core.errors import ConfigError, FatalError, Interrupted
from core.manifest import Ref
from core.models.denoiser import save_denoiser
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.training.job import TrainJob
from core.training.settings import TrainSettings
from tasks import compute
from tasks.compute import Models, device_names, shards_at_once
from tasks.workplace import Workplace
from tests.core.decoding.tiny import WORDS


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_auto_is_every_gpu_and_without_one_the_processor(monkeypatch, gpus):
    assert device_names(["auto"]) == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_names(["cuda:2", "cuda", "cuda:0"]) == ["cuda:2", "cuda:0"]
    assert device_names(["cpu"]) == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_names(["auto"]) == ["cpu"]


def test_a_device_that_is_not_there_is_an_error(gpus):
    with pytest.raises(ConfigError, match="cuda:3 is not there: this machine has 3 CUDA devices"):
        device_names(["cuda:3"])
    with pytest.raises(ValueError, match="pattern"):
        ComputeSettings(devices=("gpu",))
    with pytest.raises(ValueError, match="at least 1"):
        ComputeSettings(devices=())


def test_processes_that_train_together_leave_no_room_for_a_model_beside_theirs():
    assert not ComputeSettings(threads=4).one_at_a_time
    assert ComputeSettings(threads=4).beside == 2
    for alone in (ComputeSettings(threads=4, processes=2), ComputeSettings(threads=4, one_model=True)):
        assert alone.one_at_a_time
        assert alone.beside == 4


def test_a_gpu_drafts_one_shard_at_a_time(gpus):
    assert shards_at_once(["auto"], threads=8, each=4) == 3
    assert shards_at_once(["cuda:1"], threads=8, each=4) == 1
    assert shards_at_once(["cpu"], threads=8, each=4) == 2


def test_side_by_side_shards_are_on_different_devices(gpus):
    models = Models()
    with models.device(["auto"]) as first, models.device(["auto"]) as second:
        with models.device(["auto"]) as third:
            assert {first, second, third} == {"cuda:0", "cuda:1", "cuda:2"}
        with models.device(["auto"]) as again:
            assert again == third


def test_a_device_that_fails_is_asked_last(gpus):
    """It fails in seconds and is free again, while the others work for an hour."""
    models = Models()
    with pytest.raises(FatalError), models.device(["auto"]) as broken:
        raise FatalError("the GPU is held by somebody else")
    with models.device(["auto"]) as second, models.device(["auto"]) as third, models.device(["auto"]) as more:
        assert broken not in (second, third, more)
    with pytest.raises(Interrupted), models.device(["auto"]) as stopped:
        raise Interrupted("no fault of the device")
    with models.device(["auto"]) as again:
        assert again == stopped


def test_an_idle_model_is_used_again_by_one_at_a_time_and_makes_room_for_another():
    models, one, two = Models(), object(), object()
    key, other = ("digest", "auto"), ("digest", "bf16")
    assert models.take("cpu", key) is None
    models.keep("cpu", key, one)
    models.keep("cpu", key, two)
    assert {models.take("cpu", key), models.take("cpu", key)} == {one, two}
    assert models.take("cpu", key) is None
    models.keep("cpu", key, one)
    assert models.take("cpu", other) is None
    assert models.take("cpu", key) is None, "forgotten: two models may be too much for the device"
    models.keep("cpu", key, one)
    models.forget("cpu")
    assert models.take("cpu", key) is None


def test_processes_that_train_together_have_a_gpu_each_or_share_the_processor(monkeypatch, gpus, tmp_path):
    begun = []
    monkeypatch.setattr(compute, "train_apart", lambda *_, devices, **__: begun.append(devices))
    job = TrainJob(
        model=tmp_path, train=TrainSettings(), objective=ObjectiveSettings(), seed=0, threads=1, work=tmp_path
    )

    def train_on(processes: int, *devices: str) -> None:
        place = Workplace(home=tmp_path, store_uri=str(tmp_path), database_url="sqlite://", devices=devices)
        compute.train_on(place, job, pl.DataFrame(), processes=processes, on_metrics=lambda *_: None)

    train_on(2, "auto")
    train_on(2, "cuda:2", "cuda:0")
    train_on(3, "cpu")
    assert begun == [["cuda:0", "cuda:1"], ["cuda:2", "cuda:0"], ["cpu", "cpu", "cpu"]]
    with pytest.raises(ConfigError, match="4 that train together need a GPU each; there are 3"):
        train_on(4, "auto")


def no_image(sha: str) -> np.ndarray:
    raise AssertionError("nobody asks for an image")


@dataclass(frozen=True)
class Place:
    folder: Path
    devices: tuple[str, ...] = ("auto",)

    def local_folder(self, model: Ref) -> Path:
        return self.folder

    images = staticmethod(no_image)


def process_of(model: object, samples: pl.DataFrame, **_: object) -> int:
    return os.getpid()


@pytest.mark.slow
def test_of_several_devices_each_has_a_process_until_something_else_needs_the_device(monkeypatch, tmp_path):
    small = SceneDenoiserConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    save_denoiser(SceneDenoiser.create(small, build_word_tokenizer(WORDS), seed=0), tmp_path)
    models, names = Models(), ["cpu:0"]
    monkeypatch.setattr(compute, "MODELS", models)
    monkeypatch.setattr(compute, "device_names", lambda _: names)
    place, model = Place(tmp_path), Ref(kind="checkpoint", uri="checkpoints/small", digest="0" * 64)

    def drafted() -> int:
        return compute.draft_on(
            place, model, process_of, pl.DataFrame(), threads=1, tell=print, on_progress=print
        ).result

    assert drafted() == os.getpid(), "one device needs no other process"
    names.append("cpu:1")
    first = drafted()
    with models.device(place.devices):
        second = drafted()
    assert len({first, second, os.getpid()}) == 3
    assert drafted() == first
    models.forget("cpu:0")
    assert not psutil.pid_exists(first)
    assert psutil.pid_exists(second)
    assert drafted() not in (first, second, os.getpid())
    for name in names:
        models.forget(name)

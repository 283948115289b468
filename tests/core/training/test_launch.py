"""torchrun inside a job: what comes back, what stops it, and who ends when the parent does."""

import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from core.training.job import MODEL, STEPS, TrainJob, train_here
from core.training.launch import train_apart
from core.training.settings import LoraSettings, TrainSettings
from tests.core.models.checkpoints import DATA, published
from tests.core.models.test_published_use import LENGTH, PICTURES, load_image, samples
from tests.core.training.trainings import apart

SETTINGS = TrainSettings(
    steps=4, batch_size=4, lr=1e-3, warmup=0, optimizer="adamw", log_every=1, checkpoint_every=1,
    lora=LoraSettings(rank=2),
)  # fmt: skip
FILES = {f"{index:064x}": DATA / "llada_v_tiny" / f"image_{name}.png" for index, name in enumerate(PICTURES, start=1)}


def job_in(tmp_path: Path, settings: TrainSettings = SETTINGS) -> tuple[TrainJob, pl.DataFrame]:
    checkpoint = tmp_path / "llada_v_tiny"
    if not checkpoint.exists():
        published(tmp_path, "llada_v_tiny")
    rows = mask_rows(
        samples([*FILES, *FILES]), load_denoiser(checkpoint).tokenizer, settings=MaskSettings(draws=2),
        response_length=LENGTH, seed=0,
    ).examples  # fmt: skip
    job = TrainJob(
        model=checkpoint, train=settings, objective=ObjectiveSettings(), seed=3, threads=1, work=tmp_path / "work"
    )
    return job, rows


def test_processes_that_torchrun_starts_do_what_this_one_does(tmp_path):
    torch.set_num_threads(1)
    job, rows = job_in(tmp_path)
    seen: list[tuple[int, dict[str, float]]] = []
    result = train_apart(
        job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=lambda *report: seen.append(report)
    )
    alone = job.model_copy(update={"work": tmp_path / "alone"})
    expected = train_here(alone, rows, load_image, device="cpu", on_metrics=lambda *_: None)
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert result.curve == seen
    for (_, ours), (_, theirs) in zip(result.curve, expected.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    models = [load_denoiser(one.work / MODEL) for one in (job, alone)]
    assert apart(*models, load_denoiser(job.model)) < 5e-3
    adapters = [(one.work / MODEL / "adapter" / "adapter_config.json").read_bytes() for one in (job, alone)]
    assert adapters[0] == adapters[1]
    assert not list(job.work.rglob("*.pt")) + list(job.work.rglob("*.pkl"))


def test_what_stops_a_process_is_what_the_caller_hears(tmp_path):
    job, rows = job_in(tmp_path, SETTINGS.model_copy(update={"lora": LoraSettings(rank=2, targets=("nowhere",))}))
    with pytest.raises(ConfigError, match="no linear layer 'nowhere'"):
        train_apart(job, rows, FILES.__getitem__, devices=["cpu"], on_metrics=lambda *_: None)


PARENT = """
import sys
from pathlib import Path
from core.training.launch import train_apart
from tests.core.training.test_launch import FILES, SETTINGS, job_in
job, rows = job_in(Path(sys.argv[1]), SETTINGS.model_copy(update={"steps": 100_000}))
train_apart(job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=lambda step, _: print(step, flush=True))
"""


def test_workers_end_with_a_parent_that_is_killed_and_what_they_wrote_can_be_gone_on_with(tmp_path):
    job, rows = job_in(tmp_path)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    while int(parent.stdout.readline() or 100_000) < 2:
        pass
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert list((job.work / STEPS).glob("step-*"))

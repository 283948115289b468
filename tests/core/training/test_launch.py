"""torchrun inside a job: what comes back, what stops it, and who ends when the parent does."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.errors import ConfigError, FatalError, InputError, Interrupted
from core.interruption import interrupt, resume
from core.models.denoiser import load_denoiser
from core.training.job import MODEL, STEPS, TrainJob, train_here
from core.training.launch import _what_stopped_it, train_apart
from core.training.loop import train
from core.training.settings import LoraSettings, TrainSettings
from core.training.worker import _leave_behind
from tests.core.models.checkpoints import DATA, published
from tests.core.models.test_published_use import LENGTH, PICTURES, load_image, samples
from tests.core.training.trainings import Cut, apart, batches_of

pytestmark = pytest.mark.timeout(600)  # processes that wait for each other are slow on a machine that others use
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


def test_rows_that_the_model_cannot_read_come_back_as_rejects_and_no_temporary_file_is_left(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    job, rows = job_in(tmp_path)
    about = json.loads((job.model / "config.json").read_text())
    (job.model / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 90}))
    job = job.model_copy(update={"train": SETTINGS.model_copy(update={"steps": 1})})
    result = train_apart(job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=lambda *_: None)
    alone = job.model_copy(update={"work": tmp_path / "alone"})
    expected = train_here(alone, rows, load_image, device="cpu", on_metrics=lambda *_: None)
    assert 0 < expected.rejects.height < rows.height
    assert result.rejects.equals(expected.rejects)
    assert not list(temporary.rglob("*"))


def test_an_interruption_ends_the_processes(tmp_path):
    job, rows = job_in(tmp_path, SETTINGS.model_copy(update={"steps": 100_000}))
    try:
        with pytest.raises(Interrupted):
            train_apart(job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=lambda *_: interrupt())
    finally:
        resume()
    assert not [one for one in psutil.Process().children(recursive=True) if "core.training.worker" in one.cmdline()]


def test_the_death_of_a_process_is_a_sentence_and_the_frames_are_its_cause(tmp_path):
    job, rows = job_in(tmp_path, SETTINGS.model_copy(update={"steps": 100_000}))

    def kill_the_second(*_: object) -> None:
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if one.environ().get("LOCAL_RANK") == "1":
                    one.kill()

    with pytest.raises(FatalError) as heard:
        train_apart(job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=kill_the_second)
    assert str(heard.value) == (
        "process 1 of the training ended with code -9 (killed, often because memory ran out). Given again, the "
        "command goes on from its newest checkpoint"
    )
    assert "Traceback" in str(heard.value.__cause__)


def test_an_error_that_nobody_foresaw_is_told_in_its_own_words(tmp_path):
    job, rows = job_in(tmp_path)
    with pytest.raises(FatalError, match=r'^process 0 of .* code 1: \S+Error: "kinds" not found$') as heard:
        train_apart(job, rows.drop("kinds"), FILES.__getitem__, devices=["cpu"], on_metrics=lambda *_: None)
    assert "batches.py" in str(heard.value.__cause__)


def test_what_stops_a_process_is_what_the_caller_hears(tmp_path):
    job, rows = job_in(tmp_path, SETTINGS.model_copy(update={"lora": LoraSettings(rank=2, targets=("nowhere",))}))
    with pytest.raises(ConfigError, match="no linear layer 'nowhere'"):
        train_apart(job, rows, FILES.__getitem__, devices=["cpu"], on_metrics=lambda *_: None)


def test_an_error_of_a_worker_keeps_its_type_and_words(tmp_path):
    _leave_behind(tmp_path, InputError("the training does not fit: set its micro_batch"))
    _leave_behind(tmp_path, FatalError("the others are gone"))
    heard = _what_stopped_it(tmp_path, 1, ["chatter"])
    assert type(heard) is InputError
    assert str(heard) == "the training does not fit: set its micro_batch"


def test_the_launcher_itself_may_be_killed(tmp_path):
    heard = _what_stopped_it(tmp_path, -9, ["[rank0]: chatter: of no matter"])
    assert str(heard).startswith("the training's processes ended with code -9 (killed, often because memory ran")


ACCOUNT = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 7)
"""


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [
        (
            "[rank1]: MemoryError\n[rank0]: RuntimeError: it is gone\nValueError: of no matter",
            1,
            "1: MemoryError",
        ),
        ("KeyError: 'x'\n\nDuring handling of it:\nAssertionError", 1, "1: AssertionError"),
        ("ValueError: before the end", -11, "-11. Given again, the command goes on"),
        ("chatter", 1, "1. Given again, the command goes on"),
    ],
)
def test_what_a_process_died_of_is_its_own_last_error(tmp_path, output, code, told):
    heard = _what_stopped_it(tmp_path, 1, [*output.splitlines(), *ACCOUNT.format(code=code).splitlines()])
    assert str(heard).startswith(f"process 1 of the training ended with code {told}")


def test_a_killed_process_is_the_cause_though_its_peer_was_found_dead_first(tmp_path):
    killed, missed = (
        f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 7)" for rank, code in ((1, -9), (0, 1))
    )
    stopped = "  rank      : 2 (local_rank: 2)\n  exitcode  : -15 (pid: 9)"
    account = f"Failures:\n[1]:\n{killed}\n{stopped}\nRoot Cause (first observed failure):\n[0]:\n{missed}"
    heard = _what_stopped_it(tmp_path, 1, [*"[rank0]: RuntimeError: peer closed".splitlines(), *account.splitlines()])
    assert str(heard).startswith("process 1 of the training ended with code -9 (killed, ")


PARENT = """
import sys
from pathlib import Path
from core.training.launch import train_apart
from tests.core.training.test_launch import FILES, SETTINGS, job_in
job, rows = job_in(Path(sys.argv[1]), SETTINGS.model_copy(update={"steps": 100_000}))
train_apart(job, rows, FILES.__getitem__, devices=["cpu", "cpu"], on_metrics=lambda step, _: print(step, flush=True))
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed_and_leave_checkpoints(tmp_path):
    job, _ = job_in(tmp_path)
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


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [LoraSettings(), LoraSettings(rank=2)])
def test_a_process_that_shards_on_a_gpu_does_what_one_without_shards_does(tmp_path, lora):
    update = {"lora": lora, "precision": "bf16", "gradient_checkpointing": True, "micro_batch": 2}
    job, rows = job_in(tmp_path, SETTINGS.model_copy(update=update))
    result = train_apart(job, rows, FILES.__getitem__, devices=["cuda:0"], on_metrics=lambda *_: None)
    alone = job.model_copy(update={"work": tmp_path / "alone"})
    expected = train_here(alone, rows, load_image, device="cuda:0", on_metrics=lambda *_: None)
    for (_, ours), (_, theirs) in zip(result.curve, expected.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
    models = [load_denoiser(one.work / MODEL) for one in (job, alone)]
    assert apart(*models, load_denoiser(job.model)) < 0.2


@pytest.mark.gpu
def test_a_training_on_a_gpu_goes_on_from_its_checkpoint(tmp_path):
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    model = load_denoiser(job_in(tmp_path, settings)[0].model, device="cuda:0")
    with pytest.raises(InterruptedError):
        train(model, Cut(batches_of(model, settings), 3), settings, checkpoint_dir=tmp_path / "steps")
    whole, again = (load_denoiser(tmp_path / "llada_v_tiny", device="cuda:0") for _ in range(2))
    train(whole, batches_of(whole, settings), settings)
    result = train(again, batches_of(again, settings), settings, checkpoint_dir=tmp_path / "steps")
    assert result.resumed_at == 2
    assert apart(again, whole, load_denoiser(tmp_path / "llada_v_tiny", device="cuda:0")) < 5e-3

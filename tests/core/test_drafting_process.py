"""A process that drafts gives what this one would, passes on what it has to say, and does not outlive anybody."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from core.decoding.settings import DecodeSettings
from core.drafting import answer, draft
from core.drafting_process import DraftJob, DraftProcess
from core.errors import FatalError, InputError, Interrupted, RowError
from core.interruption import interrupt, resume
from core.models.denoiser import save_denoiser
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.worlds import scenes
from tests.clock import eventually

SETTINGS = tuple(DecodeSettings.parse(name) for name in ("8 refine", "16 freeze"))


def picture(sha: str) -> np.ndarray:
    if sha.startswith("f"):
        raise RowError("bad_image", "it is none")
    return np.random.default_rng(int(sha, 16)).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def folder_of(path: Path) -> Path:
    return path


def never(path: Path) -> Path:
    raise AssertionError("the model was there")


def fails(*_: object, **__: object) -> None:
    raise InputError("no good")


def breaks(*_: object, **__: object) -> None:
    raise ZeroDivisionError("one over nothing")


def dies(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lasts(*_: object, on_progress, **__: object) -> None:
    on_progress(os.getpid(), 0)
    time.sleep(600)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small = SceneDenoiserConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    save_denoiser(SceneDenoiser.create(small, build_word_tokenizer(scenes.VOCABULARY), seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def samples():
    return scenes.synthesize(split="train", start=0, count=6, captions=1, seed=0)[0].with_columns(
        image_sha=pl.Series([f"{number:064x}" for number in range(5)] + ["f" * 64])
    )


@pytest.fixture(scope="module")
def process():
    process = DraftProcess("cpu")
    yield process
    process.close_if_idle()


def job_of(work, checkpoint: Path, samples: pl.DataFrame, *, find=folder_of, **how: object) -> DraftJob:
    return DraftJob(
        work=work,
        samples=samples,
        load_image=picture,
        checkpoint=partial(find, checkpoint),
        digest="digest",
        dtype=None,
        threads=1,
        how={"settings": SETTINGS, "response_length": scenes.RESPONSE_LENGTH, "batch_size": 2, **how},
    )


def quiet(*_: object) -> None:
    pass


def test_it_drafts_and_answers_as_this_process_does_and_keeps_the_model(process, checkpoint, samples):
    drafting = job_of(draft, checkpoint, samples, round_index=1, model_digest="digest", trace_samples=2)
    progress: dict[str, list[tuple[int, int]]] = {"apart": [], "here": []}
    apart = process.run(drafting, tell=quiet, on_progress=lambda *done: progress["apart"].append(done))
    here = drafting.run(drafting.load("cpu"), tell=quiet, on_progress=lambda *done: progress["here"].append(done))
    for name in ("drafts", "traces", "rejects"):
        assert_frame_equal(getattr(apart.result, name), getattr(here.result, name))
    assert apart.result.rejects["reason"].to_list() == ["bad_image"] * len(SETTINGS)
    assert progress["apart"] == progress["here"] != []

    answering = job_of(answer, checkpoint, samples, find=never)
    answers = process.run(answering, tell=quiet, on_progress=quiet).result.answers
    assert answers["text"].to_list() == here.result.drafts["text"].to_list()


def test_its_errors_are_raised_here_and_it_goes_on(process, checkpoint, samples):
    with pytest.raises(InputError, match=r"^no good$"):
        process.run(job_of(fails, checkpoint, samples), tell=quiet, on_progress=quiet)
    assert process.is_alive
    assert process.run(job_of(answer, checkpoint, samples), tell=quiet, on_progress=quiet).result.answers.height == 10


def test_an_error_that_nobody_foresaw_ends_it_for_it_may_have_spoilt_the_device(checkpoint, samples):
    process = DraftProcess("cpu")
    with pytest.raises(FatalError, match=r"(?s)drafting on cpu failed.*one over nothing"):
        process.run(job_of(breaks, checkpoint, samples), tell=quiet, on_progress=quiet)
    assert not process.is_alive


def test_an_interruption_ends_it_at_once(checkpoint, samples):
    process = DraftProcess("cpu")
    try:
        with pytest.raises(Interrupted):
            process.run(job_of(lasts, checkpoint, samples), tell=quiet, on_progress=lambda *_: interrupt())
        with pytest.raises(Interrupted):
            DraftProcess("cpu").run(job_of(answer, checkpoint, samples), tell=quiet, on_progress=quiet)
    finally:
        resume()
    assert not process.is_alive


def test_its_death_is_an_error(checkpoint, samples):
    process = DraftProcess("cpu")
    with pytest.raises(FatalError, match="drafted on cpu ended with code -9"):
        process.run(job_of(dies, checkpoint, samples), tell=quiet, on_progress=quiet)
    assert not process.is_alive


def test_an_error_of_the_one_who_waits_ends_it(checkpoint, samples):
    process, seen = DraftProcess("cpu"), []

    def gives_up(pid: int, _total: int) -> None:
        seen.append(psutil.Process(pid))
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        process.run(job_of(lasts, checkpoint, samples), tell=quiet, on_progress=gives_up)
    assert not process.is_alive
    assert not seen[0].is_running()


@pytest.mark.slow
def test_it_ends_with_the_process_that_started_it(checkpoint, tmp_path):
    pid_file = tmp_path / "pid"
    script = f"""
from pathlib import Path
import polars as pl
from core.drafting_process import DraftProcess
from tests.core.test_drafting_process import job_of, lasts, quiet

def seen(pid, _total):
    Path({str(pid_file)!r} + ".tmp").write_text(str(pid))
    Path({str(pid_file)!r} + ".tmp").rename({str(pid_file)!r})

if __name__ == "__main__":
    job = job_of(lasts, Path({str(checkpoint)!r}), pl.DataFrame())
    DraftProcess("cpu").run(job, tell=quiet, on_progress=seen)
"""
    (tmp_path / "parent.py").write_text(script)
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env={**os.environ, "PYTHONPATH": root}) as one:
        eventually(pid_file.exists, 120.0)
        child = psutil.Process(int(pid_file.read_text()))
        one.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 120.0)

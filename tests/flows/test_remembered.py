from pathlib import Path

import pytest

from core.config import RunConfig
from core.errors import InputError
from core.manifest import Ref
from flows.remembered import Beginning, hold_start, recall, remember


def model(digest: str) -> Ref:
    return Ref(uri=f"checkpoints/{digest}", digest=digest, kind="checkpoint")


def test_a_run_keeps_what_it_was_begun_with(tmp_path: Path):
    begun = Beginning(kind="scheduled", config=RunConfig(seed=3))
    remember(tmp_path, "nightly", begun)
    remember(tmp_path, "nightly", Beginning(kind="scheduled", config=RunConfig(seed=4)))
    assert recall(tmp_path, "nightly") == begun


def test_a_run_that_is_taken_up_again_goes_on_from_the_model_that_it_held(tmp_path: Path):
    remember(tmp_path, "nightly", Beginning(kind="scheduled", config=RunConfig()))
    assert hold_start(tmp_path, "nightly", model("aa")) == model("aa")
    assert hold_start(tmp_path, "nightly", model("bb")) == model("aa")


def test_an_unknown_run_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no run 'nightly' here: `redraft status`"):
        recall(tmp_path, "nightly")

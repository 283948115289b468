import json

import pytest

from core.config import RunConfig
from core.errors import ConfigError
from flows.planning import run_planning
from tests.core.models.checkpoints import published

SMALL = {"steps": 5, "batch_size": 16, "optimizer": "adamw"}


def config(folder="", **stage1):
    return RunConfig.model_validate(
        {
            "model": {"checkpoint": str(folder), "response_length": 200, "prompt_length": 40},
            "base": {"steps": 0},
            "stage1": {**SMALL, **stage1},
            "stage2": SMALL,
            "rounds": {"n": 1},
        }
    )


def said(capsys):
    shown = capsys.readouterr().out
    return json.loads(shown.splitlines()[-1]), shown


def test_a_training_that_fits_is_said_to_fit(tmp_path, capsys):
    assert run_planning(config(published(tmp_path, "llada_v_tiny")), memory_gb=8, image=(64, 48), json=True) == 0
    line, shown = said(capsys)
    assert line["fits"] == {"stage1": True, "stage2": True, "control": True}
    assert line["row"] == {"text": 240, "supervised": 200, "tiles": 3}
    assert "stage1 fits" in shown


def test_a_training_that_does_not_fit_is_said_to_need_what_would_make_it_fit(tmp_path, capsys):
    folder = published(tmp_path, "llada_tiny")
    run_planning(config(folder), memory_gb=8, image=(64, 48), json=True)
    needed = said(capsys)[0]["needed_bytes"]["stage1"]
    known = config(folder, micro_batch=1)
    assert run_planning(known, memory_gb=0.9 * (needed - 1e9) / 1e9 + 1, image=(64, 48), json=True) == 1
    line, shown = said(capsys)
    assert line["fits"]["stage1"]
    assert not line["fits"]["stage2"]
    assert line["would_fit"]["stage2"]["micro_batch = 1"] == line["needed_bytes"]["stage1"]
    assert "stage2 does not fit" in shown


def test_a_run_without_a_checkpoint_has_nothing_to_plan():
    with pytest.raises(ConfigError, match=r"model\.checkpoint"):
        run_planning(config(), memory_gb=None, image=(64, 48), json=False)

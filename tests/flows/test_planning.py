import json

import pytest

from core.config import RunConfig
from core.corruption.responses import prompt_ids
from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from flows.planning import run_planning
from tests.core.models.checkpoints import published

SMALL = {"steps": 5, "batch_size": 16, "optimizer": "adamw"}


def config(folder="", **stage1):
    return RunConfig.model_validate(
        {
            "model": {"checkpoint": str(folder), "response_length": 200, "prompt_length": 100},
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
    assert line["row"] == {"text": 300, "supervised": 200, "image": [64, 48]}
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


def test_a_row_has_the_models_own_template_and_says_so(tmp_path, capsys):
    """The room for a new small model's prompt is no guess of a chat template's length."""
    folder = published(tmp_path, "llada_v_tiny")
    model = load_denoiser(folder)
    short = config(folder).model_copy(update={"model": config(folder).model.model_copy(update={"prompt_length": 8})})
    run_planning(short, memory_gb=8, image=(64, 48), json=True)
    line, shown = said(capsys)
    own = len(prompt_ids(model.tokenizer, "Describe the image.", with_image=True))
    assert own > 8
    assert line["row"]["text"] == own + 200
    positions = model.image_positions(64, 48)
    expected = [f"{own} tokens of a prompt ('Describe the image.' in", f"64 x 48, which takes {positions} positions"]
    assert all(part in line["assumed"] and part in " ".join(shown.split()) for part in expected)

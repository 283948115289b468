"""What is wrong with a checkpoint is said before a server is started or a row is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from core.config import DataSettings, RunConfig, config_path, parse_config, read_toml
from core.errors import ConfigError, InputError
from core.models.settings import ModelSettings
from flows.preflight import check_model
from flows.running import run_loop
from tests.core.models.checkpoints import published, write_config
from tests.core.models.test_masked_lm import CONFIGS, written


def config_of(folder: Path, images: str = "") -> RunConfig:
    return RunConfig(model=ModelSettings(checkpoint=str(folder)), data=DataSettings(source="coco", images=images))


@pytest.mark.parametrize("name", ["llada_v_tiny", "llada_tiny", "dream_tiny"])
def test_a_published_checkpoint_passes_and_no_weight_of_it_is_read(name, tmp_path):
    folder = published(tmp_path, name)
    weights = folder / "model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    check_model(config_of(folder))


@pytest.mark.parametrize("name", ["bert", "modernvbert"])
def test_a_masked_language_model_of_transformers_passes(name, tmp_path):
    written(tmp_path, CONFIGS[name])
    check_model(config_of(tmp_path))


def without_mask(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["mask_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|mdm_mask|>", "<|thing|>"))


def without_projector(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.0.weight"]
    save_file(weights, folder / "model.safetensors")


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*.json"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_mask, 'which token is the mask .* set "mask_token" in tokenizer_config.json'),
        (without_projector, "missing model.mm_projector.0.weight"),
        (without_tokenizer, "has no usable tokenizer"),
        (lambda folder: write_config(folder, model_type="blurb"), "no loader for model_type 'blurb'; known: Dream"),
        (lambda folder: write_config(folder, intermediate_size=96), "sizes differ from those in config.json"),
        (lambda folder: (folder / "config.json").unlink(), "is no checkpoint: config.json"),
    ],
)
def test_a_bad_checkpoint_ends_a_run_before_it_begins(
    spoil: Callable[[Path], None], message: str, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    monkeypatch.setenv("REDRAFT_HOME", str(home))
    folder = published(tmp_path, "llada_v_tiny")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        run_loop(config_of(folder), json=False)
    assert not home.exists()


def test_images_for_a_model_that_reads_none_are_refused_before_the_run_begins(tmp_path):
    with pytest.raises(ConfigError, match="reads no images"):
        check_model(config_of(published(tmp_path, "llada_tiny"), images=str(tmp_path)))


def test_without_training_of_the_base_a_checkpoint_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    preset = parse_config(read_toml(config_path("checkpoint")), "checkpoint")
    with pytest.raises(ConfigError, match=r"name its folder with model\.checkpoint"):
        run_loop(preset, json=False)
    assert not (tmp_path / "home").exists()

"""Prompt attention: what prompt and images see, in training and decoding, and what a checkpoint says about it."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, SiglipVisionConfig, SiglipVisionModel

from core.corruption.settings import ObjectiveSettings
from core.errors import ConfigError, InputError
from core.models.compose import compose
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.devices import Placement
from core.models.masked_lm import MaskedLMDenoiser
from core.models.prompt_attention import prefix_seen
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.training.batches import Examples
from core.training.loop import batch_loss
from data_contracts import TokenKind
from tests.core.models.checkpoints import DATA, byte_tokenizer, published

IMAGE = -200
PROMPT, LENGTH = 4, 11


def scene_model() -> SceneDenoiser:
    config = SceneDenoiserConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, region_layer=1, max_length=16
    )
    return SceneDenoiser.create(config, build_word_tokenizer([f"w{i}" for i in range(60)]), seed=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    names = ("llada_v_tiny", "llada_tiny", "dream_tiny")
    return {name: load_denoiser(published(folder, name)) for name in names} | {"scene": scene_model()}


@pytest.fixture(params=["llada_v_tiny", "llada_tiny", "dream_tiny", "scene"])
def model(models, request) -> Any:
    models[request.param].attend("prefix")
    yield models[request.param]
    models[request.param].attend("full")


def rows(model: Any) -> dict[str, Any]:
    """Two rows of text and image: a prompt of PROMPT tokens and a response; the second one is padded."""
    ids_BL = torch.from_numpy(np.random.default_rng(3).integers(5, 60, (2, LENGTH)))
    features = None
    if isinstance(model, SceneDenoiser):
        images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
        features = model.image_features(model.pixels(list(images)))
    elif model.vision is not None:
        ids_BL[:, 1] = IMAGE
        files = [DATA / "llada_v_tiny" / f"image_{name}.png" for name in ("wide_200x110", "tall_50x90")]
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        features = model.image_features(model.pixels(pictures))
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    valid_BL[1, 9:] = False
    prompt_BL = torch.zeros_like(valid_BL)
    prompt_BL[:, :PROMPT] = True
    return {"ids_BL": ids_BL, "valid_BL": valid_BL, "features_BND": features, "prompt_BL": prompt_BL}


@torch.no_grad()
def hidden(model: Any, batch: dict[str, Any]) -> Tensor:
    about = {key: value for key, value in batch.items() if key != "ids_BL"}
    found: Tensor = model.hidden(batch["ids_BL"], **about)
    return found


def changed(batch: dict[str, Any], column: int) -> dict[str, Any]:
    ids_BL = batch["ids_BL"].clone()
    ids_BL[:, column] = 61 - ids_BL[:, column]
    return batch | {"ids_BL": ids_BL}


def moved(model: Any, batch: dict[str, Any], column: int) -> list[bool]:
    """Which tokens of the first row have another hidden state if the token at `column` is another."""
    before, after = hidden(model, batch), hidden(model, changed(batch, column))
    return ((before - after)[0].abs().amax(-1) > 1e-6).tolist()


def test_the_prompt_sees_nothing_of_the_response_and_the_response_sees_everything(model):
    batch = rows(model)
    blind = PROMPT + int(not isinstance(model, SceneDenoiser) and model.layout.shifted)
    assert moved(model, batch, LENGTH - 1) == [False] * blind + [True] * (LENGTH - blind)
    by_prompt = moved(model, batch, 2)
    assert all(by_prompt[PROMPT:])
    assert any(by_prompt[:PROMPT]), "it sees itself"


def test_the_prompt_is_what_it_is_without_a_response(model):
    batch = rows(model)
    alone = batch | {name: batch[name][:, :PROMPT] for name in ("ids_BL", "valid_BL", "prompt_BL")}
    assert torch.allclose(hidden(model, batch)[:, :PROMPT], hidden(model, alone), atol=2e-5)


def test_a_row_is_the_same_beside_a_longer_one(model):
    batch = rows(model)
    alone = batch | {name: batch[name][1:, :9] for name in ("ids_BL", "valid_BL", "prompt_BL")}
    if batch["features_BND"] is not None:
        alone |= {"features_BND": batch["features_BND"][torch.tensor([1])]}
    assert torch.allclose(hidden(model, batch)[1:, :9], hidden(model, alone), atol=2e-5)


def test_with_full_attention_it_makes_no_difference_what_is_prompt(model):
    batch = rows(model)
    prefix = hidden(model, batch)
    model.attend("full")
    full = hidden(model, batch)
    assert torch.equal(full, hidden(model, batch | {"prompt_BL": None}))
    assert not torch.allclose(full[0], prefix[0], atol=1e-3)


def test_a_model_that_is_not_told_what_is_prompt_says_so(model):
    with pytest.raises(InputError, match="must be told which tokens are prompt"):
        hidden(model, rows(model) | {"prompt_BL": None})


def test_training_and_decoding_see_the_same(model):
    """The scene model computes them in two ways, and a training batch says by its kinds what is prompt."""
    batch = rows(model)
    kinds = torch.full_like(batch["ids_BL"], int(TokenKind.MASK))
    kinds[batch["prompt_BL"]] = int(TokenKind.PROMPT)
    trained, _ = model.hidden_and_regions(
        batch["ids_BL"], valid_BL=batch["valid_BL"], features_BND=batch["features_BND"],
        prompt_BL=kinds == int(TokenKind.PROMPT),
    )  # fmt: skip
    assert torch.allclose(trained[batch["valid_BL"]], hidden(model, batch)[batch["valid_BL"]], atol=2e-5)


def test_the_loss_of_a_batch_hides_the_response_from_the_prompt(models):
    """The first token of the response in Dream is read from the prompt's last one, which must not know it."""
    model = models["dream_tiny"]
    ids = [5, 6, 7, 500, 9, 10]

    def loss(last: int, attention: str) -> float:
        row = {
            "example_id": "e", "sample_id": "s", "image_sha": None, "input_ids": [*ids[:-1], last], "target_ids": ids,
            "kinds": [TokenKind.PROMPT] * 3 + [TokenKind.MASK] + [TokenKind.CLEAN] * 2, "t": 0.5, "regions": None,
            "recipe": "mask",
        }  # fmt: skip
        examples = Examples(pl.DataFrame([row]), pad_id=491, objective=ObjectiveSettings())
        model.attend(attention)
        value, _ = batch_loss(model, examples.batch(np.array([0])), 0.0)
        model.attend("full")
        return float(value)

    assert loss(20, "prefix") == loss(30, "prefix")
    assert loss(20, "full") != loss(30, "full")


@pytest.mark.parametrize("name", ["llada_v_tiny", "dream_tiny", "scene"])
def test_a_saved_model_says_what_its_prompt_sees(models, tmp_path, name):
    model = models[name]
    save_denoiser(model, tmp_path / "full")
    assert "prompt_attention" not in json.loads((tmp_path / "full" / "config.json").read_text())
    model.attend("prefix")
    save_denoiser(model, tmp_path / "prefix")
    model.attend("full")
    found = load_denoiser(tmp_path / "prefix")
    assert found.prompt_attention == "prefix"
    assert load_denoiser(tmp_path / "full").prompt_attention == "full"
    found.attend("full")
    save_denoiser(found, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "full" / "config.json").read_text()


def test_a_composition_takes_over_what_its_decoder_says(tmp_path):
    decoder = published(tmp_path, "llada_tiny", prompt_attention="prefix")
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8}  # fmt: skip
    SiglipVisionModel(SiglipVisionConfig(**eyes)).save_pretrained(tmp_path / "eyes")
    model = compose(tmp_path / "eyes", decoder, seed=0, placement=Placement())
    assert model.prompt_attention == "prefix"
    save_denoiser(model, tmp_path / "composed")
    assert load_denoiser(tmp_path / "composed").prompt_attention == "prefix"


@pytest.mark.parametrize("name", ["llada_tiny", "scene"])
def test_a_checkpoint_that_says_something_else_is_refused(tmp_path, name):
    if name == "scene":
        save_denoiser(scene_model(), tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_attention": "some"}))
    else:
        published(tmp_path, name, prompt_attention="some")
    with pytest.raises(InputError, match="prompt_attention = 'some'"):
        load_denoiser(tmp_path / name)


def test_a_masked_language_model_attends_to_everything_and_says_so(tmp_path):
    config = BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.mask_token = "<|mdm_mask|>"
    tokenizer.save_pretrained(tmp_path)
    model = load_denoiser(tmp_path)
    assert isinstance(model, MaskedLMDenoiser)
    assert model.prompt_attention == "full"
    model.attend("full")
    with pytest.raises(ConfigError, match="attends to everything"):
        model.attend("prefix")
    with pytest.raises(ConfigError, match="keeps no keys and values"):
        model.remembering()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_every_query_sees_a_key_and_the_prompt_no_response(lengths):
    """Rows of (prompt, response) tokens, padded."""
    width = max(map(sum, lengths))
    valid_BT = torch.tensor([[t < p + r for t in range(width)] for p, r in lengths])
    response_BT = torch.tensor([[p <= t < p + r for t in range(width)] for p, r in lengths])
    seen_BTT = prefix_seen(valid_BT, response_BT)
    assert seen_BTT.any(-1).all()
    for row, (prompt, response) in enumerate(lengths):
        for query in range(prompt + response):
            visible = seen_BTT[row, query].nonzero()[:, 0].tolist()
            assert visible == list(range(prompt if query < prompt else prompt + response))

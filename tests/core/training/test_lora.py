"""Adapters on published models: trained, resumed, merged and written."""

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from transformers import AutoModelForMaskedLM, LlamaForCausalLM

from core.errors import ConfigError
from core.models.denoiser import load_denoiser, save_denoiser
from core.training.loop import train
from core.training.lora import Adapters
from core.training.settings import LoraSettings, TrainSettings
from tests.core.models.checkpoints import published
from tests.core.models.test_masked_lm import CONFIGS, some_ids, written
from tests.core.training.trainings import Cut, batches_of, same_bits, trained, weights

LORA = LoraSettings(rank=4, alpha=8.0)
SETTINGS = TrainSettings(steps=4, batch_size=4, lr=1e-2, warmup=0, checkpoint_every=2, lora=LORA)


@pytest.fixture
def folder(tmp_path):
    torch.set_num_threads(1)
    return published(tmp_path, "llada_v_tiny")


def scores(model):
    batch = batches_of(model, SETTINGS).batch(0)
    with torch.no_grad():
        features = model.image_features(batch.pixels)[batch.image_index_I]
        return model.logits(model.hidden(batch.input_ids_BL, valid_BL=batch.valid_BL, features_BND=features))


def test_new_adapters_change_nothing_and_come_from_the_seed_alone(folder):
    model = load_denoiser(folder)
    before = scores(model)
    torch.manual_seed(1)
    adapted = Adapters(model, LORA, seed=5)
    assert torch.equal(scores(model), before)
    first = {name: layer.lora_A["default"].weight for name, layer in adapted.layers().items()}
    again, other = load_denoiser(folder), load_denoiser(folder)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = (Adapters(one, LORA, seed=seed).layers() for one, seed in ((again, 5), (other, 6)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(again[name].lora_A["default"].weight, a) for name, a in first.items())
    assert not any(torch.equal(other[name].lora_A["default"].weight, a) for name, a in first.items())
    assert len(first) == 7 * len(model.language.layers)


def test_only_the_adapted_weights_move_and_the_merged_model_computes_what_the_adapted_one_did(folder, tmp_path):
    model = load_denoiser(folder)
    before = weights(model)
    result = train(model, batches_of(model, SETTINGS), SETTINGS, seed=3)
    after = weights(model)
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("language.layers.") and name.endswith("_proj.weight")}
    assert not model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name in before if "post_layernorm" in name
    }
    adapted = load_denoiser(folder)
    layers = Adapters(adapted, LORA, seed=0).layers()
    for name, layer in layers.items():
        published_name = model.layout.name_of(f"{name}.weight").removesuffix(".weight")
        layer.lora_A["default"].weight.data = result.adapter.tensors[f"{published_name}.lora_A.weight"]
        layer.lora_B["default"].weight.data = result.adapter.tensors[f"{published_name}.lora_B.weight"]
    torch.testing.assert_close(scores(adapted), scores(model), rtol=1e-4, atol=1e-4)
    save_denoiser(model, tmp_path / "trained")
    result.adapter.save(tmp_path / "trained")
    assert torch.equal(scores(load_denoiser(tmp_path / "trained")), scores(model))
    assert (scores(load_denoiser(folder)) - scores(model)).abs().max() > 0.01


def test_the_written_adapter_fits_the_published_names(folder, tmp_path):
    """peft itself puts it on transformers' Llama, which has the published names of LLaDA-V's language model."""
    model = load_denoiser(folder)
    config = model.language.config
    train(model, batches_of(model, SETTINGS), SETTINGS, seed=3).adapter.save(tmp_path)
    llama = LlamaForCausalLM(config)
    llama.model.load_state_dict(load_denoiser(folder).language.state_dict())
    merged = PeftModel.from_pretrained(llama, tmp_path / "adapter").merge_and_unload()
    for name, p in merged.model.named_parameters():
        torch.testing.assert_close(p, model.language.get_parameter(name), rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


@torch.no_grad()
def test_the_written_adapter_of_a_bert_fits_transformers_own(tmp_path):
    written(tmp_path / "bert", CONFIGS["bert"])
    model = load_denoiser(tmp_path / "bert")
    adapters = Adapters(model, LORA, seed=0)
    for layer in adapters.layers().values():
        layer.lora_B["default"].weight.normal_()
    adapters.merge().save(tmp_path)
    ids_BL = some_ids()
    merged = model.logits(model.hidden(ids_BL, valid_BL=ids_BL > 0, features_BND=None))
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert")
    whole.train(False)
    before = whole(input_ids=ids_BL).logits
    adapted = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    torch.testing.assert_close(adapted(input_ids=ids_BL).logits, merged, rtol=1e-4, atol=1e-5)
    assert (before - merged).abs().max() > 0.1


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_killed_and_resumed_lora_training_ends_with_the_same_bits(folder, tmp_path, optimizer):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    whole, cut, resumed = (load_denoiser(folder) for _ in range(3))
    train(whole, batches_of(whole, settings), settings, seed=3)
    with pytest.raises(InterruptedError):
        train(cut, Cut(batches_of(cut, settings), 3), settings, seed=3, checkpoint_dir=tmp_path / "steps")
    kept = tmp_path / "steps" / "step-00000002" / "model.safetensors"
    assert kept.stat().st_size < (folder / "model.safetensors").stat().st_size / 4, "adapters alone are kept"
    result = train(resumed, batches_of(resumed, settings), settings, seed=3, checkpoint_dir=tmp_path / "steps")
    assert result.resumed_at == 2
    assert same_bits(whole, resumed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_are_not_cast_to_the_adapters_dtype_give_the_same_bits(folder, precision, dtype, monkeypatch):
    settings = SETTINGS.model_copy(update={"precision": precision})
    plain, _ = trained(folder, settings, seed=3, dtype=dtype)
    monkeypatch.setattr(LoraLinear, "_cast_input_dtype", lambda self, x, dtype: x.to(dtype))
    cast, _ = trained(folder, settings, seed=3, dtype=dtype)
    assert same_bits(plain, cast)


def test_chosen_layers_alone_are_adapted(folder):
    model = load_denoiser(folder)
    names = Adapters(model, LoraSettings(rank=2, targets=("q_proj", "mlp.up_proj")), seed=0).layers()
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "up_proj"}
    assert all(name.startswith("language.") for name in names)


def test_an_unknown_target_is_refused_with_the_known_ones(folder):
    with pytest.raises(ConfigError, match=r"no linear layer 'qkv'.*k_proj"):
        Adapters(load_denoiser(folder), LoraSettings(rank=2, targets=("qkv",)), seed=0)

"""What is wrong with a checkpoint is said, and what to do about it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ConfigError, InputError
from core.models.denoiser import load_denoiser
from tests.core.models.checkpoints import byte_tokenizer, published, write_config


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a folder; None removes one. Dots are written as __."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, folder / "model.safetensors")


def refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_denoiser(folder)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    folder = published(tmp_path, "dream_tiny")
    rewrite(folder, model__norm__weight=None, model__layers__7__mlp__up_proj__weight=torch.zeros(2, 2))
    refused(folder, r"missing model\.norm\.weight; unexpected model\.layers\.7\.mlp\.up_proj\.weight")


def test_of_many_missing_tensors_the_first_few_are_named(tmp_path):
    folder = published(tmp_path, "llada_tiny", n_layers=3)
    refused(folder, r"missing model\.transformer\.blocks\.2\.attn_norm\.weight, .* and 6 more")


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path):
    folder = published(tmp_path, "llada_v_tiny")
    rewrite(folder, model__mm_projector__0__weight=torch.zeros(64, 31))
    refused(folder, r"model\.mm_projector\.0\.weight is \[64, 31\] instead of \[64, 32\]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value):
    folder = published(tmp_path, "llada_tiny")
    norm = torch.ones(64)
    norm[5] = value
    rewrite(folder, model__transformer__ln_f__weight=norm)
    refused(folder, r"model\.transformer\.ln_f\.weight holds NaN or infinite")


def test_quantised_weights_are_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    rewrite(folder, model__transformer__ln_f__weight=torch.ones(64, dtype=torch.int8))
    refused(folder, "quantised")


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "run") + b"'\ntR.")
    refused(folder, r"pickled weights \(pytorch_model\.bin\).*convert them to safetensors")
    assert not (tmp_path / "run").exists()


def test_a_missing_or_damaged_file_is_named(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder, r"model\.safetensors is no readable safetensors file")
    weights.unlink()
    refused(folder, r"model\.safetensors is missing")


def test_a_missing_shard_and_a_promise_that_no_shard_keeps_are_named(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    index = folder / "model.safetensors.index.json"
    promised = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    index.write_text(json.dumps({"weight_map": promised | {"model.more": "model-00002-of-00002.safetensors"}}))
    refused(folder, r"model-00002-of-00002\.safetensors is missing")
    index.write_text(json.dumps({"weight_map": promised | {"model.more": "model.safetensors"}}))
    refused(folder, r"promises tensors that no file holds: model\.more")
    index.write_text(json.dumps({"weight_map": {"model.more": "../../elsewhere.safetensors"}}))
    refused(folder, "points outside of its folder")


@pytest.mark.parametrize("promised", [[1], "model.safetensors", None, {"model.more": 1}])
def test_an_index_that_maps_no_tensors_to_files_is_refused(tmp_path, promised):
    folder = published(tmp_path, "llada_tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": promised}))
    refused(folder, r"index\.json is damaged: weight_map must give the name of a file for each tensor")


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path):
    refused(published(tmp_path, "llada_tiny", model_type="gpt2"), r"no loader for model_type 'gpt2'; known: .*llada")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("llada_tiny", {"block_type": "sequential"}, "block_type = 'sequential' is not supported"),
        ("llada_tiny", {"d_model": 66}, "model_type 'llada'"),
        ("dream_tiny", {"use_sliding_window": True}, "use_sliding_window"),
        ("llada_v_tiny", {"mm_projector_type": "qformer"}, "mm_projector_type 'qformer'"),
        ("llada_v_tiny", {"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad'"),
        ("llada_v_tiny", {"image_grid_pinpoints": [[56, 60]]}, "image_grid_pinpoints are no multiples"),
        ("llada_v_tiny", {"image_grid_pinpoints": [[0, 56]]}, "image_grid_pinpoints are no multiples"),
        ("llada_v_tiny", {"image_grid_pinpoints": None}, r"lacks image_grid_pinpoints: \[\[width, height\], \.\.\.\]"),
        ("llada_v_tiny", {"image_grid_pinpoints": [[56]]}, r"image_grid_pinpoints = \[\[56\]\] is no grid: \[\[width"),
        ("llada_v_tiny", {"image_grid_pinpoints": "all"}, r"image_grid_pinpoints = 'all' is no grid: \[\[width"),
        ("llada_v_tiny", {"mm_vision_tower": "openai/clip-vit-large"}, "SigLIP and SigLIP2 are"),
        ("llada_v_tiny", {"mm_vision_tower": "google/siglip-base"}, r"put the tower's config\.json into"),
    ],
)
def test_a_variant_that_nobody_published_is_refused(tmp_path, name, change, match):
    refused(published(tmp_path, name, **change), match)


@pytest.mark.parametrize("written", ["linear", ["linear"], 2])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaling_of_positions_that_is_no_object_is_refused(tmp_path, key, written):
    folder = published(tmp_path, "dream_tiny", rope_scaling=None)
    write_config(folder, **{key: written})
    refused(
        folder, rf"config\.json: {key} = {re.escape(repr(written))} is not supported, an object as .*rope_type.* is"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral'"),
        ({"rope_theta": "large"}, "'str'"),
        ({"hidden_act": "swirl"}, "'swirl'"),
        ({"num_attention_heads": 0}, "division"),
        ({"num_key_value_heads": -1}, "negative dimension"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused(tmp_path, change, match):
    refused(published(tmp_path, "dream_tiny", **change), rf"no model can be built as its config\.json says: .*{match}")


def test_a_config_that_lacks_a_size_is_refused(tmp_path):
    folder = published(tmp_path, "dream_tiny")
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "lacks 'hidden_size'")


def test_a_tower_of_another_image_size_is_refused(tmp_path):
    folder = published(tmp_path, "llada_v_tiny", image_grid_pinpoints=[[84, 84]])
    write_config(folder / "siglip-tiny-patch14-56", image_size=84)
    refused(folder, r"position_embedding\.weight is \[16, 32\] instead of \[36, 32\]")


def test_pixels_of_another_size_than_the_towers_are_refused(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_v_tiny"))
    pixels = model.pixels([np.zeros((40, 40, 3), dtype=np.uint8)])
    wrong = type(pixels)(tiles_TCSS=torch.zeros(2, 3, 48, 48), counts=(2,), sizes=((40, 40),))
    with pytest.raises(InputError, match=r"pixels of \(48, 48\), but this tower takes 56 x 56"):
        model.image_features(wrong)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_what_is_no_image_is_refused(tmp_path, shape):
    model = load_denoiser(published(tmp_path, "llada_v_tiny"))
    with pytest.raises(InputError, match="H x W x 3"):
        model.pixels([np.zeros(shape, dtype=np.uint8)])


def test_a_model_without_eyes_says_so(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_tiny"))
    with pytest.raises(InputError, match="reads no images"):
        model.pixels([np.zeros((8, 8, 3), dtype=np.uint8)])


@pytest.mark.parametrize(("placeholders", "images"), [(1, 2), (2, 1), (1, 0), (0, 1)])
def test_more_or_fewer_images_than_placeholders_are_refused(tmp_path, placeholders, images):
    model = load_denoiser(published(tmp_path, "llada_v_tiny"))
    ids_BL = torch.tensor([[5, *[-200] * placeholders, 6]])
    features = None
    if images:
        features = model.image_features(model.pixels([np.zeros((40, 40, 3), dtype=np.uint8)] * images))
        features = features.grouped([images])
    with pytest.raises(InputError, match=f"row 0 has {placeholders} image placeholders for {images} images"):
        model.hidden(ids_BL, valid_BL=torch.ones_like(ids_BL, dtype=torch.bool), features_BND=features)


def test_a_row_that_is_too_long_is_refused(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_tiny", max_sequence_length=16))
    ids_BL = torch.zeros(1, 17, dtype=torch.int64)
    with pytest.raises(InputError, match="17 positions of text and image, but this model takes at most 16"):
        model.hidden(ids_BL, valid_BL=ids_BL >= 0, features_BND=None)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    folder = published(tmp_path, "llada_v_tiny", mask_token_id=None)
    tokenizer = byte_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace("<|mdm_mask|>", "<|hole|>")
    (folder / "tokenizer.json").write_text(text)
    refused(folder, r'which token is the mask \(none is called one\): set "mask_token" in tokenizer_config\.json')


def test_a_mask_id_beyond_the_tokenizer_is_refused(tmp_path):
    refused(
        published(tmp_path, "llada_tiny", mask_token_id=5000), "mask_token_id = 5000, but the tokenizer has no such"
    )


@pytest.mark.parametrize(
    ("name", "key", "written"),
    [
        ("llada_tiny", "mask_token_id", "500"),
        ("llada_tiny", "mask_token_id", [500]),
        ("llada_tiny", "mask_token_id", 500.0),
        ("llada_tiny", "mask_token_id", True),
        ("llada_tiny", "eos_token_id", "491"),
        ("llada_tiny", "eos_token_id", True),
        ("llada_v_tiny", "image_token_id", "499"),
        ("llada_v_tiny", "image_token_index", [499]),
    ],
)
def test_an_id_that_is_no_whole_number_is_refused(tmp_path, name, key, written):
    folder = published(tmp_path, name, **{key: written})
    without_end_of_text(folder)
    refused(folder, rf"config\.json: {key} = {re.escape(repr(written))} is no id of a token: a whole number is needed")


def test_of_a_list_of_ends_none_is_taken(tmp_path):
    folder = published(tmp_path, "llada_tiny", eos_token_id=[491, 494])
    without_end_of_text(folder)
    refused(folder, 'the tokenizer has no end-of-text token: set "eos_token"')


def without_end_of_text(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({key: said[key] for key in said.keys() - {"eos_token", "pad_token"}}))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    byte_tokenizer(600).save_pretrained(folder)
    refused(folder, "the tokenizer has 600 tokens, the model 512")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "no usable tokenizer")


def test_a_device_map_that_names_no_part_is_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    with pytest.raises(ConfigError, match="no part 'vision'; it has language, head"):
        load_denoiser(folder, devices={"vision": "cpu"})


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    folder = published(tmp_path, "llada_tiny", auto_map={"AutoConfig": "theirs.Config"})
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    (folder / "configuration_llada.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    load_denoiser(folder)
    assert not (tmp_path / "run").exists()
    shutil.rmtree(folder)

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from core.errors import InputError
from core.models.compose import compose
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.devices import Placement
from tests.core.models.checkpoints import published

EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}  # fmt: skip
QWEN = {"depth": 2, "hidden_size": 32, "num_heads": 4}


def tower(kind):
    """A published vision-language model of random weights."""
    torch.manual_seed(0)
    if kind == "siglip":
        return SiglipModel(SiglipConfig(vision_config=EYES, text_config={"vocab_size": 64, "num_hidden_layers": 1}))
    if kind == "siglip_vision_model":
        return SiglipVisionModel(SiglipVisionConfig(**EYES))
    if kind == "qwen2_vl":
        eyes = QWEN | {"embed_dim": 32, "mlp_ratio": 2}
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT, vision_config=eyes))
    eyes = QWEN | {"out_hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [1], "window_size": 56}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=TEXT, vision_config=eyes))


def pictures():
    drawn = np.random.default_rng(0).integers(0, 256, (3, 60, 90, 3), dtype=np.uint8)
    return [drawn[0], drawn[1, :40, :30], drawn[2]]


@torch.no_grad()
def scores(model):
    """Rows of two images, none and one; the second row is padded."""
    features = model.image_features(model.pixels(pictures())).grouped([2, 0, 1])
    ids_BL = torch.from_numpy(np.random.default_rng(1).integers(0, 480, (3, 8)))
    ids_BL[0, 2] = ids_BL[0, 4] = ids_BL[2, 5] = model.layout.placeholder
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    valid_BL[1, 5:] = False
    return model.logits(model.hidden(ids_BL, valid_BL=valid_BL, features_BND=features))[valid_BL]


@pytest.mark.parametrize("decoder", ["dream_tiny", "llada_tiny"])
@pytest.mark.parametrize("kind", ["siglip", "siglip_vision_model", "qwen2_vl", "qwen2_5_vl"])
def test_a_composition_is_saved_and_loaded_with_equal_logits(tmp_path, kind, decoder):
    tower(kind).save_pretrained(tmp_path / "eyes")
    model = compose(tmp_path / "eyes", published(tmp_path, decoder), seed=0, placement=Placement())
    save_denoiser(model, tmp_path / "both")
    again = load_denoiser(tmp_path / "both")
    assert again.layout.shifted is (decoder == "dream_tiny")
    assert torch.equal(scores(again), scores(model))


@torch.no_grad()
def test_the_tower_is_the_published_one_and_the_decoder_too(tmp_path):
    whole = tower("qwen2_5_vl")
    whole.save_pretrained(tmp_path / "eyes")
    folder = published(tmp_path, "dream_tiny")
    model = compose(tmp_path / "eyes", folder, seed=0, placement=Placement())
    pixels = model.pixels(pictures())
    seen = whole.model.visual(pixels.patches_PC, grid_thw=pixels.grid_I3).pooler_output
    assert torch.equal(model.vision.tower(pixels.patches_PC, grid_thw=pixels.grid_I3).pooler_output, seen)
    alone = load_denoiser(folder)
    ids_BL = torch.arange(9)[None]
    found, expected = (m.hidden(ids_BL, valid_BL=ids_BL >= 0, features_BND=None) for m in (model, alone))
    assert torch.equal(found, expected)


def test_images_are_prepared_as_the_published_tower_has_it(tmp_path):
    tower("qwen2_vl").save_pretrained(tmp_path / "eyes")
    photo = [np.random.default_rng(2).integers(0, 256, (700, 1400, 3), dtype=np.uint8)]
    theirs = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 12, image_mean=[0.3, 0.4, 0.5])
    theirs.save_pretrained(tmp_path / "eyes")
    model = compose(tmp_path / "eyes", published(tmp_path, "dream_tiny"), seed=0, placement=Placement())
    save_denoiser(model, tmp_path / "both")
    expected = theirs.preprocess([Image.fromarray(photo[0])], return_tensors="pt")
    for one in (model, load_denoiser(tmp_path / "both")):
        found = one.pixels(photo)
        assert torch.equal(found.patches_PC, expected["pixel_values"])
        assert torch.equal(found.grid_I3, expected["image_grid_thw"])
        assert one.vision.positions(1400, 700) == expected["image_grid_thw"].prod() // 4 <= 12


@pytest.mark.parametrize(
    "said", ["[", "[1]", '{"size": 3}', '{"max_pixels": "many"}', '{"max_pixels": -1}', '{"image_std": [1, 0, 1]}']
)
def test_a_preparation_of_images_that_cannot_be_is_refused(tmp_path, said):
    tower("qwen2_vl").save_pretrained(tmp_path / "eyes")
    (tmp_path / "eyes" / "preprocessor_config.json").write_text(said)
    with pytest.raises(InputError, match="preprocessor_config"):
        compose(tmp_path / "eyes", published(tmp_path, "dream_tiny"), seed=0, placement=Placement())


@torch.no_grad()
def test_siglip_gives_the_features_before_its_last_layer(tmp_path):
    whole = tower("siglip")
    whole.save_pretrained(tmp_path / "eyes")
    model = compose(tmp_path / "eyes", published(tmp_path, "llada_tiny"), seed=0, placement=Placement())
    tiles = model.pixels(pictures()).tiles_TCSS
    expected = whole.vision_model(tiles, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(model.vision.tower(tiles), expected, atol=1e-5)


def test_the_seed_decides_the_adapter_alone(tmp_path):
    tower("siglip").save_pretrained(tmp_path / "eyes")
    folder = published(tmp_path, "llada_tiny")
    one, same, other = (
        dict(compose(tmp_path / "eyes", folder, seed=seed, placement=Placement()).named_parameters())
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(p, same[name]) for name, p in one.items())
    different = {name for name, p in one.items() if not torch.equal(p, other[name])}
    assert different == {name for name in one if name.startswith("vision.adapter") and not name.endswith("bias")}


def test_what_has_no_tower_cannot_be_composed(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    with pytest.raises(InputError, match="no vision tower is known for model_type 'llada'"):
        compose(folder, folder, seed=0, placement=Placement())

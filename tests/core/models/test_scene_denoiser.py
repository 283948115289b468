import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from core.errors import ConfigError, InputError
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.scene_blocks import Block, SquaredRelu, UnitRms, rotation
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer

TOKENIZER = build_word_tokenizer([f"w{i}" for i in range(20)])
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "region_layer": 1, "max_length": 12}


def small(seed=0, **changes):
    return SceneDenoiser.create(SceneDenoiserConfig(**{**SMALL, **changes}), TOKENIZER, seed=seed)


def images(count, height=48, width=48, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def ids(rows, length, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 20, (rows, length)))


def everything(ids_BL):
    return torch.ones_like(ids_BL, dtype=torch.bool)


def encode(model, ids_BL, valid_BL=None, features=None):
    valid_BL = everything(ids_BL) if valid_BL is None else valid_BL
    return model.hidden_and_regions(ids_BL, valid_BL=valid_BL, features_BND=features)


def test_unit_rms_and_squared_relu_agree_with_autograd():
    x = torch.randn(3, 4, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(UnitRms.apply, (x,))
    assert torch.autograd.gradcheck(SquaredRelu.apply, (x,))
    assert torch.allclose(UnitRms.apply(x), F.rms_norm(x, (8,), eps=1e-6))
    assert torch.allclose(SquaredRelu.apply(x), F.relu(x) ** 2)


def reference_block(block, x_BTD, padding_BT, images):
    """The block written a second time: rotation by 2 x 2 matrices, torch's own attention."""
    b, t, d = x_BTD.shape
    e = d // block.heads
    qkv = block.qkv(block.attention_norm(x_BTD)).view(b, t, 3, block.heads, e)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    q, k = F.rms_norm(q, (e,), eps=1e-6), F.rms_norm(k, (e,), eps=1e-6)
    turn = torch.eye(e).repeat(t, 1, 1)
    for position in range(images, t):
        for pair in range(e // 4):
            angle = (position - images + 1) * 50.0 ** (-pair / (e // 4))
            c, s = math.cos(angle), math.sin(angle)
            turn[position, 2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor([[c, -s], [s, c]])
    q, k = (torch.einsum("tij,bhtj->bhti", turn, z) for z in (q, k))
    q = q * block.query_scale[:, None, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=~padding_BT[:, None, None, :])
    x_BTD = x_BTD + block.attention_out(attended.transpose(1, 2).reshape(b, t, d))
    return x_BTD + block.mlp_out(F.relu(block.mlp_in(block.mlp_norm(x_BTD))) ** 2)


def test_block_agrees_with_a_second_implementation():
    torch.manual_seed(0)
    block = Block(32, 2, 2)
    with torch.no_grad():
        block.query_scale.copy_(torch.tensor([1.5, 0.7]))
    x_BTD = torch.randn(3, 11, 32)
    padding_BT = torch.zeros(3, 11, dtype=torch.bool)
    padding_BT[1, 8:] = True
    ours = block(x_BTD, rotation(4, 7, 8, 50.0), padding_BT[:, None])
    assert torch.allclose(ours, reference_block(block, x_BTD, padding_BT, 4), atol=1e-5)


def test_every_position_sees_every_other_and_the_image():
    model = small()
    ids_BL = ids(1, 6)
    features = model.image_features(model.pixels(images(1)))
    before, _ = encode(model, ids_BL, features=features)
    for changed in (0, 5):
        other = ids_BL.clone()
        other[0, changed] = (other[0, changed] + 1) % 20
        after, _ = encode(model, other, features=features)
        assert (before - after).abs().amax(-1).min() > 1e-4
    after, _ = encode(model, ids_BL, features=model.image_features(model.pixels(images(1, seed=1))))
    assert (before - after).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("with_image", [True, False])
def test_padding_changes_nothing(with_image):
    model = small()
    ids_BL = ids(2, 7)
    features = model.image_features(model.pixels(images(2))) if with_image else None
    alone, _ = encode(model, ids_BL[:, :4], features=features)
    valid_BL = everything(ids_BL)
    valid_BL[:, 4:] = False
    padded, _ = encode(model, ids_BL, valid_BL, features)
    assert torch.allclose(alone, padded[:, :4], atol=1e-5)


def test_batch_size_does_not_change_tokens():
    model = small()
    ids_BL, pixels = ids(9, 8), model.pixels(images(9))
    together, _ = encode(model, ids_BL, features=model.image_features(pixels))
    for row in range(9):
        alone, _ = encode(model, ids_BL[row : row + 1], features=model.image_features(pixels[row : row + 1]))
        assert torch.allclose(alone[0], together[row], atol=1e-5)
        assert torch.equal(model.logits(alone[0]).argmax(-1), model.logits(together[row]).argmax(-1))


def test_regions_are_the_patches_row_by_row():
    model = small(image_height=32, image_width=48)
    assert model.config.regions == 6
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    base = model.image_features(model.pixels([image]))
    image[16:, 32:] = 255
    changed = (model.image_features(model.pixels([image])) != base).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True]
    _, regions_BLR = encode(model, ids(1, 5), features=base)
    assert regions_BLR.shape == (1, 5, 6)


def test_text_without_an_image_has_no_regions():
    hidden_BLD, regions = encode(small(), ids(2, 5))
    assert hidden_BLD.shape == (2, 5, 32)
    assert regions is None


def test_pixels_are_scaled_and_resized():
    model = small(image_height=96, image_width=96, patch_size=32)
    black, photo = np.zeros((96, 96, 3), dtype=np.uint8), images(1, 120, 77)[0]
    pixels = model.pixels([black, photo])
    assert pixels.shape == (2, 3, 96, 96)
    assert pixels[0].unique().tolist() == [-1.0]
    resized = np.asarray(Image.fromarray(photo).resize((96, 96), Image.Resampling.BILINEAR)) / 127.5 - 1
    assert torch.allclose(pixels[1], torch.from_numpy(resized).permute(2, 0, 1).float(), atol=1e-6)


def test_the_seed_alone_decides_the_weights():
    state = torch.get_rng_state()
    one, same, other = small(), small(), small(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert 0.4 < one.row_embedding.std().item() < 0.6


def test_a_saved_model_loads_with_the_same_bits(tmp_path, capfd):
    model = small(image_height=32)
    save_denoiser(model, tmp_path)
    loaded = load_denoiser(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    theirs = dict(loaded.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    assert loaded.config.regions == model.config.regions
    assert loaded.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert not loaded.training
    assert capfd.readouterr().err == ""


def test_the_transformers_interface_gives_the_same_logits():
    model = small()
    ids_BL, pixels = ids(2, 6), model.pixels(images(2))
    hidden_BLD, _ = encode(model, ids_BL, features=model.image_features(pixels))
    assert torch.equal(model(input_ids=ids_BL, pixel_values=pixels).logits, model.logits(hidden_BLD))


def test_matrices_are_those_of_the_blocks():
    model = small()
    assert len(model.matrix_names()) == 2 * 4
    assert all(dict(model.named_parameters())[name].ndim == 2 for name in model.matrix_names())


@pytest.mark.parametrize("changes", [{"image_height": 50}, {"hidden_size": 36}, {"patch_size": 64}])
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(ConfigError):
        small(**changes)


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="13 text tokens"):
        encode(small(), ids(1, 13))


def test_folders_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="bert"):
        load_denoiser(tmp_path)
    SceneDenoiserConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="scene_denoiser"):
        load_denoiser(tmp_path)

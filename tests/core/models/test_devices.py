"""Parts on several devices: tensors without content, which know their device and are refused where two devices meet."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from core import token_losses
from core.decoding.reading import Whole
from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from core.models.devices import Placement
from core.models.merging import ImageFeatures, _arranged, _Texts
from core.models.tiling import TiledImages
from tests.core.models.checkpoints import published
from tests.core.models.test_masked_lm import CONFIGS, written

HOME = torch.device("cpu")
ROWS, LENGTH = 2, 9


def spread(model: nn.Module, devices: Mapping[str, str]) -> None:
    """What loading with this device map does, for devices that are not there."""
    placement = Placement(device=str(HOME), devices=devices)
    done: dict[int, nn.Parameter] = {}
    for path, part in list(model.named_modules()):
        device = placement.device_of(path)
        for name, p in list(part.named_parameters(recurse=False)):
            made = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device))
            setattr(part, name, done.setdefault(id(p), made))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent=False)
    placement.connect(model)


def arranged(features: ImageFeatures | None):
    """Rows that each show their image, if there are any."""
    blank_BL = torch.zeros(ROWS, LENGTH, dtype=torch.bool, device=HOME)
    every = (LENGTH,) * ROWS
    texts = _Texts(is_image_BL=blank_BL, valid_BL=~blank_BL, size_BL=blank_BL + 1, valid=every, ends=every)
    return _arranged(texts, features)


def computes(model, features: ImageFeatures | None = None) -> None:
    """A forward, a loss and a backward: what is asked for comes back to where the ids are."""
    ids_BL = torch.zeros(ROWS, LENGTH, dtype=torch.int64, device=HOME)
    hidden = model.hidden(ids_BL, valid_BL=ids_BL == 0, features_BND=arranged(features)).flatten(0, 1)
    assert hidden.device == model.device == HOME
    assert model.logits(hidden).device == HOME
    with torch.no_grad():
        assert Whole(model=model).logits(hidden).device == HOME
    losses = model.token_losses(hidden, ids_BL.flatten(), torch.ones(ROWS * LENGTH, device=HOME))
    assert losses.loss.device == losses.ce_N.device == losses.correct_N.device == HOME
    losses.loss.backward()
    trained = [p for p in model.language.parameters() if p.grad is not None]
    assert len(trained) > 4
    assert all(p.grad.device == p.device for p in trained)


@pytest.mark.parametrize(
    "devices",
    [
        {"language.layers.0": "cpu:1"},
        {"vision": "cpu:1", "language.layers.1": "cpu:1"},
        {"language.embed_tokens": "cpu", "language": "cpu:1"},
        {"language.norm": "cpu:1", "head": "cpu:2"},
        {"language.rotary_emb": "cpu:1"},
        {"vision.adapter": "cpu:1", "vision.tower.model.encoder.layers.0": "cpu:2"},
    ],
)
@pytest.mark.parametrize("whole_bytes", [0, 2**28])
def test_parts_on_other_devices_pass_their_tensors_on(tmp_path, monkeypatch, devices, whole_bytes):
    monkeypatch.setattr(token_losses, "_WHOLE_BYTES", whole_bytes)
    model = load_denoiser(published(tmp_path, "llada_v_tiny"), device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        spread(model, devices)
        computes(model)
        tiles = torch.zeros(4, 3, 56, 56, device=HOME)
        computes(model, model.image_features(TiledImages(tiles_TCSS=tiles, counts=(2, 2), sizes=((56, 56),) * 2)))


def test_keys_and_values_are_kept_where_their_layers_are(tmp_path):
    model = load_denoiser(published(tmp_path, "dream_tiny"), device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        spread(model, {"language.layers.1": "cpu:1", "language.norm": "cpu:1"})
        ids_BL = torch.zeros(ROWS, LENGTH, dtype=torch.int64, device=HOME)
        hidden, known = model.remembering().remember(
            ids_BL, valid_BL=ids_BL == 0, features_BND=arranged(None), prompt_BL=ids_BL == 1
        )
        assert hidden.device == HOME
        assert [keys.device.index for keys, _ in known.layers] == [None, 1]
        again = model.remembering().reread(ids_BL, known, offset_B=ids_BL[:, 0], begin=2, end=5)
        assert again.device == HOME


@pytest.mark.parametrize(("name", "layer"), [("bert", "language.encoder.layer.1"), ("modernbert", "language.layers.0")])
def test_a_masked_language_model_can_be_spread_too(tmp_path, name, layer):
    written(tmp_path, CONFIGS[name])
    model = load_denoiser(tmp_path)
    with FakeTensorMode(allow_non_fake_inputs=True):
        spread(model, {layer: "cpu:1"})
        computes(model)


def test_a_head_that_shares_the_embedding_stays_with_it(tmp_path):
    written(tmp_path, CONFIGS["bert"])
    with pytest.raises(
        ConfigError, match=r"'head\.0\.predictions\.decoder' shares weights with a part on another device"
    ):
        load_denoiser(tmp_path, devices={"head": "meta"})


@pytest.mark.parametrize(
    ("prefix", "whole"),
    [
        ("language.layers.0.mlp", "language.layers.0"),
        ("vision.adapter.layers", "vision.adapter"),
        ("vision.tower.model.embeddings.patch_embedding", "vision.tower.model.embeddings"),
    ],
)
def test_what_computes_together_stays_together(tmp_path, prefix, whole):
    with pytest.raises(ConfigError, match=f"'{prefix}' cannot leave '{whole}'"):
        load_denoiser(published(tmp_path, "llada_v_tiny"), devices={prefix: "meta"})

"""Parity with what the published code computed on the committed checkpoints, and saving back in their layouts."""

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from core.errors import InputError
from core.models import checkpoint
from core.models.checkpoint import read_config, write_checkpoint
from core.models.decoders import decoder_family
from core.models.denoiser import load_denoiser, save_denoiser
from core.objectives import denoising
from data_contracts import TokenKind
from tests.core.models.checkpoints import DATA, cases, golden, published

IMAGES = ("wide_200x110", "tall_50x90", "square_56x56")
NAMES = ("llada_tiny", "dream_tiny", "llada_v_tiny")
ATOL = 5e-5
"""Observed: 0 for text, 1.1e-5 for logits with an image."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: load_denoiser(published(folder, name)) for name in NAMES}


def tensor(array: np.ndarray) -> Tensor:
    found = torch.from_numpy(np.asarray(array))
    return found.long() if found.dtype == torch.int32 else found


def image(name: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / "llada_v_tiny" / f"image_{name}.png").convert("RGB"))


def logits(model: Any, ids_BL: Tensor, valid_BL: Tensor | None = None, features: Any = None) -> Tensor:
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool) if valid_BL is None else valid_BL
    return model.logits(model.hidden(ids_BL, valid_BL=valid_BL, features_BND=features))


def at_text(merged: Tensor, ids_BL: Tensor, lengths: list[int]) -> Tensor:
    """Of a merged sequence with one image a row, the text's positions; a placeholder's is the image's first."""
    rows = []
    for row, ids, length in zip(merged, ids_BL, lengths, strict=True):
        place = int((ids == -200).nonzero()[0, 0])
        after = len(ids) - place - 1
        rows.append(torch.cat([row[: place + 1], row[place + length : place + length + after]]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "key"), [("llada_tiny", "logits"), ("dream_tiny", "logits_shifted"), ("llada_v_tiny", "logits")]
)
def test_logits_of_a_text_are_the_published_ones(models, name, key):
    arrays = golden(name)
    assert torch.allclose(
        logits(models[name], tensor(arrays["text/input_ids"])), tensor(arrays[f"text/{key}"]), atol=ATOL
    )


@pytest.mark.parametrize(
    ("name", "mask", "key", "case"),
    [
        ("llada_tiny", "attention_mask", "logits_valid", "leftpad"),
        ("llada_v_tiny", "attention_mask", "logits_masked", "text2"),
    ],
)
def test_padding_is_seen_by_nobody(models, name, mask, key, case):
    arrays = golden(name)
    valid_BL = tensor(arrays[f"{case}/{mask}"]).bool()
    found = logits(models[name], tensor(arrays[f"{case}/input_ids"]), valid_BL)
    assert torch.allclose(found[valid_BL], tensor(arrays[f"{case}/{key}"])[valid_BL], atol=ATOL)


def test_dream_with_padding_gives_the_published_logits_one_position_later(models):
    arrays = golden("dream_tiny")
    valid_BL = tensor(arrays["leftpad/attention_mask"]).bool()
    found = logits(models["dream_tiny"], tensor(arrays["leftpad/input_ids"]), valid_BL)
    both_BL = valid_BL[:, 1:] & valid_BL[:, :-1]
    raw = tensor(arrays["leftpad/logits_valid"])[:, :-1]
    assert torch.allclose(found[:, 1:][both_BL], raw[both_BL], atol=ATOL)


@pytest.mark.parametrize("name", IMAGES)
def test_images_become_the_published_tiles_features_and_logits(models, name):
    model, arrays = models["llada_v_tiny"], golden("llada_v_tiny")
    pixels = model.pixels([image(name)])
    assert torch.allclose(pixels.tiles_TCSS, tensor(arrays[f"img/{name}/pixel_values"]), atol=1e-6)
    with torch.no_grad():
        seen = model.vision.tower(pixels.tiles_TCSS)
        assert torch.allclose(seen, tensor(arrays[f"img/{name}/vision_features"]), atol=ATOL)
        assert torch.allclose(model.vision.adapter(seen), tensor(arrays[f"img/{name}/projected"]), atol=ATOL)
        features = model.image_features(pixels)
        assert torch.allclose(features.values_FD, tensor(arrays[f"img/{name}/merged_image_features"]), atol=ATOL)
        ids_BL = tensor(arrays[f"img/{name}/prompt_ids"])
        expected = at_text(tensor(arrays[f"img/{name}/logits"]), ids_BL, list(features.lengths))
        assert torch.allclose(logits(model, ids_BL, features=features), expected, atol=ATOL)


def test_rows_with_images_of_other_sizes_share_a_batch(models):
    model, arrays = models["llada_v_tiny"], golden("llada_v_tiny")
    ids_BL = tensor(arrays["batch_merge/input_ids"])
    valid_BL = tensor(arrays["batch_merge/input_attention_mask"]).bool()
    names = cases("llada_v_tiny")["batch_merge_images"]
    with torch.no_grad():
        features = model.image_features(model.pixels([image(name) for name in names]))
        together = logits(model, ids_BL, valid_BL, features)
        for row in range(2):
            alone = logits(model, ids_BL[row : row + 1], valid_BL[row : row + 1], features[torch.tensor([row])])
            keep = valid_BL[row]
            assert torch.allclose(together[row][keep], alone[0][keep], atol=ATOL)


def loss_inputs(arrays: dict[str, np.ndarray], case: str) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Input ids (merged positions, images as -200), labels, kinds and the noise level of each row."""

    def of(key: str) -> np.ndarray:
        return arrays[f"loss/{case}/{key}"]

    labels, masked, marked = of("labels_merged"), of("masked_indices"), of("revise_indices_merged")
    kinds = np.where(labels != -100, TokenKind.CLEAN, TokenKind.PROMPT).astype(np.int8)
    ids = np.where(labels != -100, labels, 0)
    kinds[masked], ids[masked] = TokenKind.MASK, 500
    if f"loss/{case}/replace_indices" in arrays:
        replaced = of("replace_indices")
        kinds[replaced] = TokenKind.SYNTAX
    kinds[marked & (labels != -100)] = TokenKind.HALLUCINATION
    kinds[marked.any(1) & ~(kinds == TokenKind.HALLUCINATION).any(1)] = TokenKind.PROMPT
    return tensor(ids), tensor(labels), kinds, of("p_mask")[:, 0]


def visible_ids(arrays: dict[str, np.ndarray], case: str) -> Tensor:
    """What the model saw, text alone: prompts and marked rows as given, masks and replacements in the others."""
    ids = arrays[f"loss/{case}/input_ids"].copy()
    masked = arrays[f"loss/{case}/masked_indices"]
    ids[masked] = 500
    if f"loss/{case}/replace_indices" in arrays:
        replaced = arrays[f"loss/{case}/replace_indices"]
        ids[replaced] = arrays[f"loss/{case}/replace_ids"][replaced]
    return tensor(ids)


def published_loss(model: Any, case: str, scores: Tensor, *, text: Any = lambda merged: merged) -> Tensor:
    """The loss of `scores` by our weights and objective, with the official code's options."""
    arrays, about = golden("llada_v_tiny"), cases("llada_v_tiny")["losses"][case]
    _, labels, kinds, p_mask = loss_inputs(arrays, case)
    recipes = np.array(["revision" if about["revise"] else "mask"] * len(labels))
    weights = torch.from_numpy(token_weights(kinds, p_mask, recipes, ObjectiveSettings(pair_loss="span")))
    weights, labels, kinds_BL = text(weights), text(labels), text(torch.from_numpy(kinds))
    keep = weights != 0
    loss, _ = denoising(scores[keep], labels[keep], weights[keep], kinds_BL[keep], rows=len(labels))
    return loss


TEXT_LOSSES = ("text_norevise", "text_revise_ordinary", "text_revise_mixed", "text_norevise_with_revise_rows")


@pytest.mark.parametrize("case", TEXT_LOSSES)
def test_losses_and_gradients_are_the_published_ones(models, case):
    model, arrays = models["llada_v_tiny"], golden("llada_v_tiny")
    scores = logits(model, visible_ids(arrays, case))
    assert torch.allclose(scores, tensor(arrays[f"loss/{case}/logits"]), atol=ATOL)
    loss = published_loss(model, case, scores)
    assert float(loss.detach()) == pytest.approx(float(arrays[f"loss/{case}/loss_total"]), rel=1e-5)
    model.zero_grad()
    loss.backward()
    norms = cases("llada_v_tiny")["losses"][case]["grad_norms"]
    for name, p in model.named_parameters():
        found = 0.0 if p.grad is None else float(p.grad.norm())
        assert found == pytest.approx(norms.get(model.layout.name_of(name), 0.0), rel=1e-3, abs=1e-5), name
    model.zero_grad()


@pytest.mark.parametrize("case", ["image_revise_mixed", "image_revise_two_sizes"])
def test_losses_with_images_are_the_published_ones(models, case):
    model, arrays = models["llada_v_tiny"], golden("llada_v_tiny")
    given = tensor(arrays[f"loss/{case}/input_ids"])
    sizes = cases("llada_v_tiny")["images"]
    names = IMAGES[:1] * 2 if case == "image_revise_mixed" else IMAGES[:2]
    lengths = [sizes[name]["image_seq_len"] for name in names]

    def text(merged: Tensor) -> Tensor:
        return at_text(merged, given, lengths)

    masked, replaced = (text(tensor(arrays[f"loss/{case}/{key}_indices"])) for key in ("masked", "replace"))
    ids_BL = torch.where(replaced, text(tensor(arrays[f"loss/{case}/replace_ids"])), given).masked_fill(masked, 500)
    with torch.no_grad():
        features = model.image_features(model.pixels([image(name) for name in names]))
        scores = logits(model, ids_BL, features=features)
    valid = text(tensor(arrays[f"loss/{case}/labels_merged"])) != -100
    # the published code lets everyone attend to the padding of the shorter row, whose loss is 0 for another fault
    valid &= torch.tensor(lengths)[:, None] == max(lengths)
    assert torch.allclose(scores[valid], text(tensor(arrays[f"loss/{case}/logits"]))[valid], atol=ATOL)
    loss = published_loss(model, case, scores, text=text)
    assert float(loss) == pytest.approx(float(arrays[f"loss/{case}/loss_total"]), rel=1e-5)


@pytest.mark.parametrize("case", ["multiturn_convmask_norevise", "multiturn_convmask_revise"])
def test_losses_under_the_conversation_mask_are_the_published_ones(models, case):
    model, arrays = models["llada_v_tiny"], golden("llada_v_tiny")
    turn_BL = tensor(arrays[f"loss/{case}/conversation_ids_merged"])
    mask_B1LL = (turn_BL[:, None, :] <= turn_BL[:, :, None])[:, None]
    embedded = model.get_input_embeddings()(visible_ids(arrays, case))
    hidden = model.language(inputs_embeds=embedded, attention_mask=mask_B1LL, use_cache=False).last_hidden_state
    scores = model.logits(hidden)
    assert torch.allclose(scores, tensor(arrays[f"loss/{case}/logits"]), atol=ATOL)
    loss = published_loss(model, case, scores)
    assert float(loss.detach()) == pytest.approx(float(arrays[f"loss/{case}/loss_total"]), rel=1e-5)


def stored(folder: Path) -> dict[str, Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_the_published_layout_back(tmp_path, monkeypatch, name, shard_bytes):
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", shard_bytes)
    folder = published(tmp_path, name)
    (folder / "modeling_theirs.py").write_text("raise SystemExit")
    model = load_denoiser(folder)
    save_denoiser(model, tmp_path / "saved")
    before, after = stored(folder), stored(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) is (shard_bytes < 10**9)
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "saved/config.json").read_text())
    assert (tmp_path / "saved/modeling_theirs.py").read_text() == "raise SystemExit"
    again = load_denoiser(tmp_path / "saved")
    ids_BL = tensor(golden(name)["text/input_ids"])
    assert torch.equal(logits(again, ids_BL), logits(model, ids_BL))
    assert again.tokenizer.mask_token_id == 500


@pytest.mark.parametrize(
    ("name", "key", "head", "embedding"),
    [
        ("llada_tiny", "weight_tying", "model.transformer.ff_out.weight", "model.transformer.wte.weight"),
        ("dream_tiny", "tie_word_embeddings", "lm_head.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_head_that_shares_the_embedding_is_stored_once(tmp_path, name, key, head, embedding):
    folder = published(tmp_path, name, **{key: True})
    tensors = stored(folder)
    del tensors[head]
    save_file(tensors, folder / "model.safetensors")
    model = load_denoiser(folder)
    hidden = torch.randn(3, 64)
    assert torch.equal(model.logits(hidden), hidden @ tensors[embedding].T)
    save_denoiser(model, tmp_path / "saved")
    assert stored(tmp_path / "saved").keys() == tensors.keys() == {*map(model.layout.name_of, model.state_dict())}


@pytest.mark.parametrize("absolute", [False, True])
def test_a_tower_that_lies_elsewhere_goes_with_the_saved_model(tmp_path, absolute):
    place = tmp_path / ("away" if absolute else "") / "siglip-tiny"
    folder = published(tmp_path, "llada_v_tiny", mm_vision_tower=str(place) if absolute else "google/siglip-tiny")
    place.parent.mkdir(exist_ok=True)
    (folder / "siglip-tiny-patch14-56").rename(place)
    model = load_denoiser(folder)
    (tmp_path / "elsewhere").mkdir()
    save_denoiser(model, tmp_path / "elsewhere/saved")
    place.rename(tmp_path / "gone")
    again = load_denoiser(tmp_path / "elsewhere/saved")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.image_positions(90, 50) == model.image_positions(90, 50)
    with pytest.raises(InputError, match="the sizes of the vision tower"):
        load_denoiser(folder)


def test_a_tower_is_not_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    folder = published(tmp_path, "llada_v_tiny", mm_vision_tower="google/siglip-tiny")
    (tmp_path / "work/google").mkdir(parents=True)
    (folder / "siglip-tiny-patch14-56").rename(tmp_path / "work/google/siglip-tiny")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(InputError, match=r"the sizes of the vision tower.*llada_v_tiny/siglip-tiny, or beside"):
        load_denoiser(folder)


def test_a_path_of_the_author_that_cannot_be_looked_at_is_none(tmp_path):
    folder = published(tmp_path, "llada_v_tiny", mm_vision_tower=f"/{'x' * 300}/siglip-tiny")
    with pytest.raises(InputError, match="the sizes of the vision tower"):
        load_denoiser(folder)


def test_saving_over_the_folder_it_came_from_keeps_the_model(tmp_path):
    folder = published(tmp_path, "llada_v_tiny")
    model = load_denoiser(folder)
    ids_BL = tensor(golden("llada_v_tiny")["text/input_ids"])
    before = logits(model, ids_BL)
    save_denoiser(model, folder)
    assert torch.equal(logits(model, ids_BL), before)
    assert torch.equal(logits(load_denoiser(folder), ids_BL), before)


def test_a_checkpoint_in_bf16_stays_in_bf16(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_v_tiny"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    save_denoiser(model, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    again = load_denoiser(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    features = again.image_features(again.pixels([image("tall_50x90")]))
    ids_BL = tensor(golden("llada_v_tiny")["img/tall_50x90/prompt_ids"])
    assert logits(again, ids_BL, features=features).isfinite().all()


def peak_memory() -> int:
    """Bytes of physical memory that this process had at most since the last `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_loading_never_holds_a_second_copy_of_the_weights(tmp_path):
    sizes = {"d_model": 512, "n_heads": 8, "n_kv_heads": 8, "mlp_hidden_size": 2048, "n_layers": 8}
    folder = published(tmp_path, "llada_tiny", **sizes)
    family = decoder_family(read_config(folder))
    language, head = family.build()
    made = nn.ModuleDict({"language": language, "head": head}).bfloat16()
    tensors = {family.name_of(name): p for name, p in made.named_parameters()}
    write_checkpoint(folder, tensors, read_config(folder), {})
    weights = sum(p.nbytes for p in made.parameters())
    del language, head, made, tensors
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_memory()
    model = load_denoiser(folder)
    assert sum(p.nbytes for p in model.parameters()) == weights > 60e6
    assert peak_memory() - before < 1.3 * weights


def test_parts_are_loaded_to_the_devices_they_belong_on(tmp_path):
    away = {"vision": "meta", "language.layers.1": "meta", "language.norm": "meta", "head": "meta"}
    model = load_denoiser(published(tmp_path, "llada_v_tiny"), devices=away)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.is_meta is any(name.startswith(f"{part}.") for part in away), name
    assert model.device.type == "cpu"
    assert model.image_features(model.pixels([image("tall_50x90")])).values_FD.device.type == "meta"


def test_the_head_scores_the_positions_it_is_given_alone(models):
    model = models["llada_tiny"]
    ids_BL = tensor(golden("llada_tiny")["text/input_ids"])
    hidden = model.hidden(ids_BL, valid_BL=ids_BL >= 0, features_BND=None)
    some = torch.tensor([3, 9])
    assert torch.allclose(model.logits(hidden[0, some]), logits(model, ids_BL)[0, some], atol=1e-5)


def test_the_groups_that_a_training_tells_apart_are_names(models):
    names = [name for name, _ in models["llada_v_tiny"].named_parameters()]
    assert {".".join(name.split(".")[:2]) if name.startswith("vision") else name.split(".")[0] for name in names} == {
        "vision.tower",
        "vision.adapter",
        "language",
        "head",
    }
    assert dataclasses.is_dataclass(models["llada_v_tiny"].layout)

"""What a training may choose: rates of groups, precision, micro-batches, activations computed again, buckets."""

import json

import numpy as np
import pytest
import torch

from core.corruption.settings import ObjectiveSettings
from core.errors import ConfigError, InputError
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.training.batches import TrainingBatches
from core.training.checkpoint import load_latest
from core.training.groups import group_of
from core.training.loop import batch_loss, train
from core.training.optim import build_optimizers, learning_rate, set_learning_rate
from core.training.order import ByLength, DataOrder
from core.training.parts import parts_of
from core.training.settings import GroupRates, LoraSettings, TrainSettings
from core.training.trainee import prepare
from tests.core.corruption.tables import TOKENIZER
from tests.core.models.checkpoints import published
from tests.core.models.test_published_use import SHAS
from tests.core.training.test_batches import FRAME, image
from tests.core.training.trainings import Cut, apart, batches_of, same_bits, trained, weights

SETTINGS = TrainSettings(steps=3, batch_size=6, lr=1e-3, warmup=0, optimizer="adamw", checkpoint_every=2)
LORA = LoraSettings(rank=4, alpha=8.0)
SHAS_IN_ORDER = list(SHAS)


@pytest.fixture
def folder(tmp_path):
    torch.set_num_threads(1)
    return published(tmp_path, "llada_v_tiny")


def changed(**update):
    return SETTINGS.model_copy(update=update)


def scene_model():
    config = SceneDenoiserConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_length=16)
    return SceneDenoiser.create(config, TOKENIZER, seed=0)


def test_each_parameter_of_a_published_model_is_of_one_group(folder):
    model = load_denoiser(folder)
    groups = {name: group_of(model, name, p) for name, p in model.named_parameters()}
    assert {name for name, group in groups.items() if group == "head"} == {"head.weight"}
    for prefix, group in (("vision.tower.", "vision_tower"), ("vision.adapter.", "vision_adapter")):
        assert {name for name in groups if name.startswith(prefix)} == {n for n, g in groups.items() if g == group}
    assert {name for name, group in groups.items() if group == "language"} == {
        name for name in groups if name.startswith("language.")
    }


def test_a_scene_model_sees_with_its_patches_and_speaks_with_its_head():
    model = scene_model()
    groups = {name: group_of(model, name, p) for name, p in model.named_parameters()}
    assert set(groups.values()) == {"vision_tower", "language", "head"}
    assert groups["image_position"] == groups["patch_embedding.0.weight"] == "vision_tower"
    assert groups["lm_head.bias"] == "head"
    assert groups["blocks.0.qkv.weight"] == groups["token_embedding.weight"] == "language"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_groups_learn_at_their_own_rates_and_one_of_rate_0_stands_still(folder, optimizer):
    model = load_denoiser(folder)
    rates = GroupRates(vision_tower=1e-5, vision_adapter=0.0, head=2e-3)
    settings = changed(optimizer=optimizer, group_lr=rates, warmup=2)
    trainee = prepare(model, settings, seed=0)
    optimizers = build_optimizers(model, settings, trainee.rates)
    wanted = {"vision_tower": 1e-5, "language": 1e-3, "head": 2e-3}
    for step in range(3):
        set_learning_rate(optimizers, learning_rate(step, settings))
        scale = learning_rate(step, settings) / settings.lr
        rate = {id(p): g["lr"] for one in optimizers for g in one.param_groups for p in g["params"]}
        for name, p in model.named_parameters():
            group = group_of(model, name, p)
            if group == "vision_adapter" or "post_layernorm" in name:
                assert id(p) not in rate
            else:
                assert rate[id(p)] == pytest.approx(scale * wanted[group])
    before = weights(load_denoiser(folder))
    moved, _ = trained(folder, settings)
    still = {name for name, p in weights(moved).items() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("vision.adapter.") or "post_layernorm" in name}


def test_with_adapters_another_part_is_trained_only_if_its_rate_is_given(folder):
    before = weights(load_denoiser(folder))
    model, _ = trained(folder, changed(lora=LORA, group_lr=GroupRates(vision_adapter=1e-3)))
    moved = {name for name, p in weights(model).items() if not torch.equal(p, before[name])}
    assert moved == {
        name
        for name in before
        if name.startswith("vision.adapter.") or (name.startswith("language.layers.") and "_proj.weight" in name)
    }


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"group_lr": GroupRates(vision_adapter=1e-3)}, "no such part; it has head, language$"),
        ({"group_lr": GroupRates(language=0.0, head=0.0)}, "stands still"),
    ],
)
def test_rates_that_fit_no_part_are_refused(tmp_path, update, message):
    model = load_denoiser(published(tmp_path, "llada_tiny"))
    with pytest.raises(ConfigError, match=message):
        prepare(model, changed(**update), seed=0)


def test_activations_cannot_be_computed_again_by_a_model_that_does_not_know_how():
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        prepare(scene_model(), changed(gradient_checkpointing=True), seed=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [LoraSettings(), LORA])
def test_activations_that_are_computed_again_give_the_same_bits(folder, lora, precision, monkeypatch):
    calls = []
    layer = type(load_denoiser(folder).language.layers[0].mlp)
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: calls.append(1) or forward(self, x))
    plain, first = trained(folder, changed(lora=lora, precision=precision))
    once = len(calls)
    again, second = trained(folder, changed(lora=lora, precision=precision, gradient_checkpointing=True))
    assert len(calls) == 3 * once
    assert same_bits(plain, again)
    assert first.metrics["loss"] == second.metrics["loss"]
    assert not any(getattr(part, "gradient_checkpointing", False) for part in again.modules())


@pytest.mark.parametrize("lora", [LoraSettings(), LORA])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_give_the_update_of_the_whole_step(folder, lora, micro_batch):
    whole, first = trained(folder, changed(lora=lora))
    split, second = trained(folder, changed(lora=lora, micro_batch=micro_batch))
    assert apart(whole, split, load_denoiser(folder)) < 5e-3
    for name, value in first.metrics.items():
        if name.split("/")[0] in ("loss", "ce", "accuracy", "count", "grad_norm", "lr"):
            assert second.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_micro_batches_share_the_loss_of_the_region_head_by_their_labels():
    def after(micro_batch):
        model = scene_model()
        settings = changed(batch_size=16, micro_batch=micro_batch)
        batches = TrainingBatches(FRAME, model, image, batch_size=16, seed=0, objective=ObjectiveSettings())
        return model, train(model, batches, settings, grounding_weight=1.0)

    (whole, first), (split, second) = after(0), after(3)
    assert apart(whole, split, scene_model()) < 5e-3
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("kind_count", ["row", "batch"])
@pytest.mark.parametrize("world", [1, 3])
def test_a_token_weighs_in_a_part_what_it_weighs_in_the_whole_step(kind_count, world):
    objective = ObjectiveSettings(kind_count=kind_count)
    batches = TrainingBatches(FRAME, scene_model(), image, batch_size=16, seed=0, objective=objective)
    whole = batches.batch(1)
    for rank in range(world):
        for part in parts_of(16, micro_batch=3, rank=rank, world=world):
            split = batches.part(1, part.places)
            length = split.weights_BL.shape[1]
            assert torch.equal(split.weights_BL, whole.weights_BL[part.places, :length])
            assert not whole.weights_BL[part.places, length:].any()


def test_micro_batches_give_the_update_of_a_step_whose_kinds_are_counted_in_the_batch():
    def after(micro_batch):
        model, objective = scene_model(), ObjectiveSettings(kind_count="batch")
        batches = TrainingBatches(FRAME, model, image, batch_size=16, seed=0, objective=objective)
        return model, train(model, batches, changed(batch_size=16, micro_batch=micro_batch))

    (whole, first), (split, second) = after(0), after(3)
    assert apart(whole, split, scene_model()) < 5e-3
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world"), [(8, 0, 1), (8, 3, 1), (8, 3, 2), (7, 2, 3), (2, 0, 4)]
)
def test_every_row_of_a_step_is_computed_once_and_every_process_computes_equally_often(batch_size, micro_batch, world):
    dealt = [parts_of(batch_size, micro_batch=micro_batch, rank=rank, world=world) for rank in range(world)]
    assert len({len(parts) for parts in dealt}) == 1
    counted = np.concatenate([part.places for parts in dealt for part in parts if part.counts])
    assert sorted(counted) == list(range(batch_size))
    assert all(0 < len(part.places) <= (micro_batch or batch_size) for parts in dealt for part in parts)


@pytest.mark.parametrize("lora", [LoraSettings(), LORA])
def test_bf16_computes_otherwise_and_keeps_what_is_trained_in_fp32(folder, lora):
    model = load_denoiser(folder, dtype=torch.bfloat16)
    trainee = prepare(model, changed(precision="bf16", lora=lora), seed=0)
    kept = {name: p.dtype for name, p in model.named_parameters()}
    assert {kept[name] for name in trainee.trained()} == {torch.float32}
    assert {dtype for name, dtype in kept.items() if name not in trainee.trained()} == {torch.bfloat16}
    exact, first = trained(folder, changed(lora=lora))
    rough, second = trained(folder, changed(lora=lora, precision="bf16"))
    assert second.metrics["loss"] != first.metrics["loss"]
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=0.03)
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert 1e-3 < apart(exact, rough, load_denoiser(folder)) < 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bf16_checkpoint_learns_at_rates_that_bf16_could_not_add_and_is_saved_as_bf16(folder, tmp_path, precision):
    save_denoiser(load_denoiser(folder, dtype=torch.bfloat16), tmp_path / "half")
    before = weights(load_denoiser(tmp_path / "half"))
    settings = changed(precision=precision, lr=2e-4, steps=8, checkpoint_every=8)
    model = load_denoiser(tmp_path / "half")
    result = train(model, batches_of(model, settings), settings, checkpoint_dir=tmp_path / "steps")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    state = load_latest(tmp_path / "steps")
    assert {tensor.dtype for tensor in (*state.model.values(), *state.optimizer.values())} == {torch.float32}
    norm = "language.norm.weight"
    drift = (state.model[norm] - before[norm].float()).abs()
    assert 0 < drift.max() < 0.004, "less than bf16 can add to a weight of 1"
    assert result.metrics["loss"] > 0


def test_a_training_with_everything_goes_on_with_the_same_bits(folder, tmp_path):
    settings = changed(
        precision="bf16", lora=LORA, group_lr=GroupRates(vision_adapter=1e-4), micro_batch=4, bucket=2,
        gradient_checkpointing=True,
    )  # fmt: skip
    whole, _ = trained(folder, settings)
    cut = load_denoiser(folder)
    with pytest.raises(InterruptedError):
        train(cut, Cut(batches_of(cut, settings), 2), settings, checkpoint_dir=tmp_path)
    again, result = trained(folder, settings, checkpoint_dir=tmp_path)
    assert result.resumed_at == 2
    assert same_bits(whole, again)


def test_a_training_that_ran_out_of_memory_goes_on_with_settings_that_need_less(folder, tmp_path):
    whole, _ = trained(folder, changed())
    cut = load_denoiser(folder)
    with pytest.raises(InterruptedError):
        train(cut, Cut(batches_of(cut, changed()), 2), changed(), checkpoint_dir=tmp_path)
    less = changed(micro_batch=4, gradient_checkpointing=True)
    again, result = trained(folder, less, checkpoint_dir=tmp_path)
    assert result.resumed_at == 2
    assert apart(whole, again, load_denoiser(folder)) < 5e-3


def test_rows_of_similar_length_come_together_and_every_one_once_an_epoch():
    lengths = np.random.default_rng(0).integers(5, 100, 64)
    plain = DataOrder(rows=64, batch_size=4, seed=3)
    order = ByLength(plain=plain, steps=8, length_N=lengths)
    read = [order.step(k) for k in range(32)]
    assert (np.sort(np.concatenate(read).reshape(2, 64), axis=1) == np.arange(64)).all()
    longest = [lengths[rows].max() for rows in read]
    assert not (np.diff(longest[:8]) >= 0).all(), "the lengths do not rise from step to step"

    def padding(batches):
        return 1 - sum(lengths[rows].sum() for rows in batches) / sum(4 * lengths[rows].max() for rows in batches)

    assert padding(read) < 0.3 * padding([plain.step(k) for k in range(32)])
    other = ByLength(plain=plain, steps=8, length_N=lengths)
    assert [other.step(k).tolist() for k in reversed(range(32))] == [rows.tolist() for rows in reversed(read)]
    reseeded = ByLength(plain=DataOrder(rows=64, batch_size=4, seed=4), steps=8, length_N=lengths)
    assert reseeded.step(0).tolist() != read[0].tolist()


def positions_in(model, batch):
    """Of each row, as the model itself merges it with its image."""
    features = model.image_features(batch.pixels)[batch.image_index_I]
    merged = model.merged(batch.input_ids_BL, batch.valid_BL, features)
    if merged.valid_BT is None:
        return torch.full((batch.rows,), merged.embeddings_BTD.shape[1])
    return merged.valid_BT.sum(dim=1)


@torch.no_grad()
def merged_padding(model, batches, steps):
    found = [positions_in(model, batches.batch(step)).float() for step in range(steps)]
    return [1 - (of_rows.mean() / of_rows.max()).item() for of_rows in found]


def test_the_share_of_padding_is_reported_with_images_inside_the_text(folder):
    model = load_denoiser(folder)
    batches = batches_of(model, SETTINGS)
    expected = merged_padding(model, batches, SETTINGS.steps)
    result = train(model, batches, changed(log_every=1))
    assert [metrics["padding"] for _, metrics in result.curve] == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0.1


def test_rows_come_together_by_the_positions_of_their_images(folder):
    """Their texts are about equally long; their images are not."""
    model = load_denoiser(folder)
    settings = changed(batch_size=4)
    steps = len(SHAS) * 2 * 2 // 4
    plain = batches_of(model, settings)
    bucketed = batches_of(model, settings.model_copy(update={"bucket": steps}))
    assert sum(merged_padding(model, bucketed, steps)) < 0.4 * sum(merged_padding(model, plain, steps))


def shortened(folder, positions):
    """The model, reading no more than this many positions."""
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"max_position_embeddings": positions}))
    return load_denoiser(folder)


@pytest.mark.parametrize("bucket", [0, 3])
def test_rows_that_are_too_long_with_their_image_are_rejects_and_the_others_are_read(folder, bucket):
    settings = changed(batch_size=1, bucket=bucket)
    whole = [batches_of(load_denoiser(folder), settings).batch(step) for step in range(12)]
    longer = sum(int(batch.positions_B) > 90 for batch in whole)
    assert longer in (4, 8)
    batches = batches_of(shortened(folder, 90), settings)
    assert batches.rejects["reason"].to_list() == ["row_too_long"] * longer
    assert batches.rejects["row_id"].n_unique() == longer
    assert all("the model reads 90" in detail for detail in batches.rejects["detail"])
    read = [batches.batch(step) for step in range(12 - longer)]

    def texts(batches):
        return sorted(str(batch.input_ids_BL.tolist()) for batch in batches)

    assert texts(read) == texts(batch for batch in whole if int(batch.positions_B) <= 90)


def test_rows_of_text_that_are_too_long_are_rejects_too():
    config = SceneDenoiserConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_length=12)
    model = SceneDenoiser.create(config, TOKENIZER, seed=0)
    batches = TrainingBatches(FRAME, model, image, batch_size=16, seed=0, objective=ObjectiveSettings())
    too_long = FRAME.filter(FRAME["input_ids"].list.len() > 12)
    assert batches.rejects["row_id"].to_list() == too_long["example_id"].to_list()


def test_a_training_whose_rows_are_all_too_long_says_so(folder):
    with pytest.raises(InputError, match=r"none of the 12 training rows: \d+ positions .* reads 9"):
        batches_of(shortened(folder, 9), SETTINGS)


def test_an_image_of_a_size_that_the_model_cannot_read_is_a_reject(folder, monkeypatch):
    model = load_denoiser(folder)
    positions = model.image_positions

    def no_tall_ones(width, height):
        if height > width:
            raise ValueError("too tall")
        return positions(width, height)

    monkeypatch.setattr(model, "image_positions", no_tall_ones)
    batches = batches_of(model, SETTINGS)
    assert batches.rejects["reason"].to_list() == ["unusable_image"] * 4
    assert "50 x 90: too tall" in batches.rejects["detail"][0]


def test_rows_with_and_without_images_are_computed_together_as_they_are_alone(folder):
    model = load_denoiser(folder)
    shas = [SHAS_IN_ORDER[0], None, SHAS_IN_ORDER[1], None, SHAS_IN_ORDER[0], SHAS_IN_ORDER[2]]
    together = batches_of(model, changed(batch_size=12), shas).batch(0)
    assert sorted(together.images_B) == [0] * 4 + [1] * 8
    assert len(together.image_index_I) == 8
    loss, _ = batch_loss(model, together, 0.0)
    alone = batches_of(model, changed(batch_size=1), shas)
    losses = [batch_loss(model, alone.batch(step), 0.0)[0] for step in range(12)]
    assert {alone.batch(step).pixels is None for step in range(12)} == {True, False}
    assert loss.item() == pytest.approx(sum(one.item() for one in losses) / 12, rel=1e-5)
    gradient = [torch.autograd.grad(one, model.head.weight)[0] for one in (loss, sum(losses) / 12)]
    assert torch.allclose(*gradient, rtol=1e-3, atol=1e-6)

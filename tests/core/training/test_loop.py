import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from core.errors import ConfigError, FatalError, InputError, Interrupted
from core.interruption import interrupt, resume
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.training.batches import Batch
from core.training.checkpoint import load_latest
from core.training.loop import batch_loss, train
from core.training.settings import TrainSettings
from data_contracts import TokenKind

WORDS = 12
TOKENIZER = build_word_tokenizer([f"w{i}" for i in range(WORDS)])
SETTINGS = TrainSettings(steps=12, batch_size=8, warmup=2, lr=5e-3, log_every=4, checkpoint_every=5)


def small_model():
    config = SceneDenoiserConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_length=8)
    return SceneDenoiser.create(config, TOKENIZER, seed=3)


class Copies:
    """Rows w_i w_i w_i w_i whose second half is masked; two rows an image, which is of no use."""

    def __init__(self, rows=8, *, images=True, broken_at=None, read=None):
        self.rows, self.images, self.broken_at = rows, images, broken_at
        self.read = [] if read is None else read

    def batch(self, step):
        self.read.append(step)
        rng = np.random.default_rng(step)
        target_BL = torch.from_numpy(rng.integers(0, WORDS, (self.rows, 1)).repeat(4, axis=1))
        kinds_BL = torch.full((self.rows, 4), int(TokenKind.CLEAN), dtype=torch.int8)
        kinds_BL[:, 2:] = int(TokenKind.MASK)
        kinds_BL[:, 0] = int(TokenKind.PROMPT)
        masked_BL = kinds_BL == TokenKind.MASK
        weights_BL = masked_BL.float() / 2
        if step == self.broken_at:
            weights_BL[0, 2] = math.inf
        pixels = torch.from_numpy(rng.random((self.rows // 2, 3, 48, 48), dtype=np.float32)) if self.images else None
        return Batch(
            input_ids_BL=torch.where(masked_BL, TOKENIZER.mask_token_id, target_BL),
            target_ids_BL=target_BL,
            kinds_BL=kinds_BL,
            weights_BL=weights_BL,
            valid_BL=torch.ones_like(masked_BL),
            regions_BL=torch.where(masked_BL, -1, target_BL % 9).to(torch.int16) if self.images else None,
            pixels=pixels,
            image_index_I=torch.arange(self.rows) // 2 if self.images else None,
        )


class Killed(Exception):
    pass


def kill_at(step):
    def on_metrics(done, metrics):
        if done >= step:
            raise Killed

    return on_metrics


def same_bits(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def without_rates(curve):
    """Metrics in their order."""
    return [(step, [item for item in metrics.items() if item[0] != "steps_per_second"]) for step, metrics in curve]


def test_an_interrupted_training_ends_before_its_next_step_and_goes_on_to_the_same_bits(tmp_path):
    settings = SETTINGS.model_copy(update={"log_every": 1})
    whole, model, read = small_model(), small_model(), []
    train(whole, Copies(), settings)

    def stop_at_six(done, _metrics):
        if done == 6:
            interrupt()

    try:
        with pytest.raises(Interrupted):
            train(model, Copies(read=read), settings, checkpoint_dir=tmp_path, on_metrics=stop_at_six)
    finally:
        resume()
    assert read == list(range(6))
    again = small_model()
    assert train(again, Copies(), settings, checkpoint_dir=tmp_path).resumed_at == 5
    assert same_bits(again, whole)


def test_it_learns_what_can_be_learned():
    seen = []
    settings = SETTINGS.model_copy(update={"steps": 120, "log_every": 20})
    model = small_model()
    result = train(model, Copies(16), settings, on_metrics=lambda done, metrics: seen.append((done, metrics)))
    assert [done for done, _ in seen] == [20, 40, 60, 80, 100, 120]
    assert seen[0][1]["accuracy/mask"] < 0.6
    assert seen[-1][1]["accuracy/mask"] > 0.95
    assert seen[-1][1]["loss"] < seen[0][1]["loss"]
    assert {"ce/mask", "lr", "grad_norm", "steps_per_second"} <= seen[-1][1].keys()
    assert result.curve == seen
    assert result.metrics == seen[-1][1]
    assert not model.training


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_killed_and_resumed_training_ends_with_the_same_bits(tmp_path, optimizer):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    straight = small_model()
    whole = train(straight, Copies(), settings, grounding_weight=1.0)
    with pytest.raises(Killed):
        train(small_model(), Copies(), settings, grounding_weight=1.0, checkpoint_dir=tmp_path, on_metrics=kill_at(8))
    resumed, batches = small_model(), Copies()
    result = train(resumed, batches, settings, grounding_weight=1.0, checkpoint_dir=tmp_path)
    assert result.resumed_at == 5
    assert batches.read == list(range(5, 12))
    assert same_bits(straight, resumed)
    assert without_rates(result.curve) == without_rates(whole.curve)


def test_a_finished_training_reads_nothing_again(tmp_path):
    one, again, batches = small_model(), small_model(), Copies()
    first = train(one, Copies(), SETTINGS, checkpoint_dir=tmp_path)
    second = train(again, batches, SETTINGS, checkpoint_dir=tmp_path)
    assert batches.read == []
    assert same_bits(one, again)
    assert second.metrics == first.metrics


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    train(small_model(), Copies(), SETTINGS, checkpoint_dir=tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        train(small_model(), Copies(), SETTINGS.model_copy(update={"lr": 1e-4}), checkpoint_dir=tmp_path)
    train(small_model(), Copies(), SETTINGS.model_copy(update={"log_every": 1}), checkpoint_dir=tmp_path)


def test_a_device_that_is_too_small_is_told_with_what_needs_less_of_it(monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(SceneDenoiser, "hidden_and_regions", too_large)
    with pytest.raises(InputError, match=r"micro_batch.*gradient_checkpointing.*estimate --train.*allocate 2.00 GiB"):
        train(small_model(), Copies(), SETTINGS)


def test_a_loss_that_is_not_finite_names_its_step_and_saves_nothing(tmp_path):
    with pytest.raises(FatalError, match="step 6"):
        train(small_model(), Copies(broken_at=6), SETTINGS, checkpoint_dir=tmp_path)
    assert load_latest(tmp_path).step == 5


def test_the_loss_is_the_weighted_cross_entropy_of_all_positions():
    model, batch = small_model(), Copies().batch(0)
    loss, metrics = batch_loss(model, batch, 0.5)
    features_BND = model.image_features(batch.pixels)[batch.image_index_I]
    hidden_BLD, regions_BLR = model.hidden_and_regions(
        batch.input_ids_BL, valid_BL=batch.valid_BL, features_BND=features_BND
    )
    ce_BL = F.cross_entropy(model.logits(hidden_BLD).movedim(-1, 1), batch.target_ids_BL, reduction="none")
    known_BL = batch.regions_BL >= 0
    pointing = F.cross_entropy(regions_BLR[known_BL], batch.regions_BL[known_BL].long())
    assert loss.item() == pytest.approx(((ce_BL * batch.weights_BL).sum() / batch.rows + 0.5 * pointing).item())
    assert metrics["count/mask"] == 16


def test_text_alone_can_be_trained_on():
    result = train(small_model(), Copies(images=False), SETTINGS, grounding_weight=1.0)
    assert math.isfinite(result.metrics["loss"])
    assert "grounding/ce" not in result.metrics


def test_trainings_side_by_side_end_with_the_bits_of_one_alone():
    def trained(model: SceneDenoiser) -> list[torch.Tensor]:
        train(model, Copies(), SETTINGS, threads=1)
        return list(model.parameters())

    alone, *others = [small_model() for _ in range(4)]
    wanted = trained(alone)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(trained, others):
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))

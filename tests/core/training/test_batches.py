from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch

from core.corruption.mask import mask_rows
from core.corruption.revision import revision_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings, RevisionSettings
from core.corruption.weights import token_weights
from core.errors import InputError
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.training.batches import Examples, TrainingBatches
from core.training.image_cache import ImageCache
from core.training.loop import batch_loss
from core.training.order import DataOrder
from data_contracts import TokenKind as K
from tests.core.corruption.tables import LENGTH, PAD, TOKENIZER, WORDS, sample, samples_of, world


def image(sha):
    return np.full((48, 48, 3), int(sha, 16) % 251 + 1, dtype=np.uint8)


def stack(images):
    return torch.from_numpy(np.stack(images))


def mixed_frame():
    """Prompts of two lengths, two recipes, some rows without grounding; four rows an image."""
    samples, pairs = world(40)
    settings = {"response_length": LENGTH, "seed": 0}
    revised = revision_rows(samples, pairs, TOKENIZER, settings=RevisionSettings(draws=4), **settings)
    other = samples_of(*(sample(i, "a ring", prompt="the image") for i in range(100, 110)))
    masked = mask_rows(other, TOKENIZER, settings=MaskSettings(draws=2), **settings)
    return pl.concat([revised.examples, masked.examples])


FRAME = mixed_frame()


def examples(frame=FRAME, **options):
    options = {"pad_id": PAD, "objective": ObjectiveSettings(), "load_image": image, "preprocess": stack} | options
    return Examples(frame, **options)


def test_a_batch_holds_its_rows_padded_to_the_longest():
    rows = np.array([3, 170, 0, 175])
    batch = examples().batch(rows)
    assert batch.rows == 4
    for place, row in enumerate(FRAME[rows].iter_rows(named=True)):
        length = len(row["input_ids"])
        assert length == (13 if row["recipe"] == "revision" else 12)
        assert batch.input_ids_BL[place].tolist() == row["input_ids"] + [PAD] * (13 - length)
        assert batch.target_ids_BL[place].tolist() == row["target_ids"] + [PAD] * (13 - length)
        assert batch.kinds_BL[place].tolist() == row["kinds"] + [K.PAD] * (13 - length)
        assert batch.valid_BL[place].tolist() == [True] * length + [False] * (13 - length)
        assert batch.regions_BL[place].tolist() == (row["regions"] or [-1] * length) + [-1] * (13 - length)


def test_weights_are_those_of_the_rows_own_recipe_and_ignore_padding():
    rows = np.array([3, 170, 0, 175])
    batch = examples().batch(rows)
    for place, row in enumerate(FRAME[rows].iter_rows(named=True)):
        kinds, t = np.array([row["kinds"]], np.int8), np.array([row["t"]], np.float32)
        alone = token_weights(kinds, t, np.array([row["recipe"]]), ObjectiveSettings())[0]
        np.testing.assert_allclose(batch.weights_BL[place, : len(alone)], alone, rtol=1e-6)
        assert not batch.weights_BL[place, len(alone) :].any()
    assert not batch.weights_BL[(batch.kinds_BL == K.PROMPT) | (batch.kinds_BL == K.PAD)].any()


def test_tensor_types_are_those_that_models_take():
    batch = examples().batch(np.arange(5))
    assert [batch.input_ids_BL.dtype, batch.target_ids_BL.dtype] == [torch.int64] * 2
    assert (batch.kinds_BL.dtype, batch.weights_BL.dtype, batch.valid_BL.dtype) == (
        torch.int8,
        torch.float32,
        torch.bool,
    )
    assert (batch.regions_BL.dtype, batch.image_index_I.dtype) == (torch.int16, torch.int64)


def test_each_row_shows_its_own_image_and_each_image_is_there_once():
    rows = np.array([0, 1, 9, 2, 8, 3])
    batch = examples().batch(rows)
    assert batch.pixels.shape[0] == 2
    for place, sha in enumerate(FRAME["image_sha"].gather(rows)):
        assert (batch.pixels[batch.image_index_I[place]].numpy() == image(sha)).all()


def test_an_image_is_decoded_once():
    calls = Counter()

    def load(sha):
        calls[sha] += 1
        return image(sha)

    data = examples(load_image=load)
    order = DataOrder(rows=len(data), batch_size=16, seed=0)
    for step in range(order.steps(3)):
        data.batch(order.step(step))
    assert set(calls) == set(FRAME["image_sha"])
    assert set(calls.values()) == {1}


def test_the_image_cache_keeps_to_its_bytes_and_drops_what_was_used_longest_ago():
    calls = []

    def load(sha):
        calls.append(sha)
        return image(sha)

    cache = ImageCache(load, max_bytes=2 * 48 * 48 * 3)
    for sha in ("1", "2", "1", "3", "1", "2"):
        assert (cache(sha) == image(sha)).all()
    assert calls == ["1", "2", "3", "2"]
    assert (ImageCache(load, max_bytes=0)("7") == image("7")).all()


def test_text_rows_need_no_image():
    batch = examples(FRAME.with_columns(image_sha=pl.lit(None, pl.String)), load_image=None, preprocess=None).batch(
        np.arange(3)
    )
    assert (batch.pixels, batch.image_index_I) == (None, None)


def test_ungrounded_data_has_no_regions():
    frame = FRAME.filter(pl.col("recipe") == "mask")
    assert examples(frame).batch(np.arange(3)).regions_BL is None


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (FRAME.clear(), {}, "no training rows"),
        (FRAME.with_columns(image_sha=pl.when(pl.col("recipe") == "mask").then("image_sha")), {}, "all must, or none"),
        (FRAME, {"load_image": None}, "load_image"),
    ],
)
def test_data_that_cannot_be_batched_is_refused(frame, options, message):
    with pytest.raises(InputError, match=message):
        examples(frame, **options)


@pytest.mark.parametrize(("rows", "batch_size"), [(100, 16), (7, 16), (64, 64), (5, 1)])
def test_every_epoch_reads_every_row_once(rows, batch_size):
    order = DataOrder(rows=rows, batch_size=batch_size, seed=3)
    read = np.concatenate([order.step(k) for k in range(order.steps(4))])
    epochs = read[: 4 * rows].reshape(4, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_the_order_is_a_pure_function_of_seed_and_step():
    one, other = (DataOrder(rows=50, batch_size=8, seed=1) for _ in range(2))
    forwards = [one.step(k).tolist() for k in range(30)]
    assert [other.step(k).tolist() for k in reversed(range(30))] == forwards[::-1]
    assert DataOrder(rows=50, batch_size=8, seed=2).step(0).tolist() != forwards[0]


def test_steps_of_an_epoch_are_rounded_up():
    order = DataOrder(rows=100, batch_size=16, seed=0)
    assert (order.steps(1), order.steps(2), order.steps(0.1)) == (7, 13, 1)


def test_a_model_trains_on_what_it_is_given():
    config = SceneDenoiserConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_length=16)
    model = SceneDenoiser.create(config, TOKENIZER, seed=0)
    settings = {"batch_size": 8, "seed": 0, "objective": ObjectiveSettings()}
    batches = TrainingBatches(FRAME, model, image, **settings)
    batch = batches.batch(0)
    loss, metrics = batch_loss(model, batch, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert metrics["ce/mask"].item() == pytest.approx(np.log(len(WORDS) + 4), rel=0.3)
    again = TrainingBatches(FRAME, model, image, **settings).batch(0)
    assert torch.equal(again.input_ids_BL, batch.input_ids_BL)
    assert torch.equal(again.pixels, batch.pixels)
    assert not torch.equal(batches.batch(1).input_ids_BL, batch.input_ids_BL)

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings
from data_contracts import TokenKind as K
from data_contracts import TrainingExamples
from tests.core.corruption.tables import EOS, LENGTH, MASK, TOKENIZER, ids, matrix, response, sample, samples_of, world


def masked(samples, seed=0, length=LENGTH, **settings):
    return mask_rows(samples, TOKENIZER, response_length=length, seed=seed, settings=MaskSettings(**settings))


@pytest.fixture(scope="module")
def result():
    return masked(world()[0], draws=3)


def test_rows_keep_the_contract(result):
    TrainingExamples.validate(result.examples)
    assert (result.rows_in, result.rows_ok, result.rejects.height) == (300, 300, 0)
    assert result.examples.height == 900


def test_a_row_is_prompt_then_the_caption_partly_masked(result):
    inputs, targets, kinds = (matrix(result.examples, name) for name in ("input_ids", "target_ids", "kinds"))
    captions = {row["sample_id"]: ids(row["reference"], LENGTH) for row in world()[0].iter_rows(named=True)}
    expected = [ids("describe the image") + captions[sample_id] for sample_id in result.examples["sample_id"]]
    np.testing.assert_array_equal(targets, expected)
    assert ((inputs == MASK) == (kinds == K.MASK)).all()
    assert (kinds[:, :3] == K.PROMPT).all()
    assert np.isin(kinds[:, 3:], [K.MASK, K.CLEAN]).all()
    assert (inputs == targets)[kinds != K.MASK].all()
    assert (kinds[:, 3:][targets[:, 3:] == EOS] == K.MASK).any()  # the fill takes part


def test_each_token_is_masked_with_probability_t():
    frame = masked(samples_of(*(sample(i, "a red ring") for i in range(2000))), draws=4, length=40).examples
    share, t = (response(frame, "kinds") == K.MASK).mean(axis=1), frame["t"].to_numpy()
    deviation = (share - t) / np.sqrt(np.maximum(t * (1 - t), 1e-4) / 40)
    assert abs(deviation.mean()) < 0.05
    assert deviation.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("sampling", ["stratified", "iid"])
def test_noise_levels_are_uniform_above_their_floor(sampling):
    t = masked(world()[0], draws=8, t_min=0.2, t_sampling=sampling).examples["t"].to_numpy()
    assert t.min() > 0.2 - 1e-6
    assert t.max() <= 1.0
    counts = np.histogram(t, bins=8, range=(0.2, 1.0))[0]
    assert ((counts == 300).all()) == (sampling == "stratified")
    assert (abs(counts - 300) < 80).all()


def test_stratified_draws_share_the_levels_out(result):
    thirds = ((1.0 - result.examples["t"].to_numpy().reshape(-1, 3)) / (1 - 1e-3) * 3).astype(int)
    assert (np.sort(thirds, axis=1) == [0, 1, 2]).all()


def test_neither_order_nor_company_of_samples_changes_a_row(result):
    some = world()[0].sample(40, shuffle=True, seed=5)
    again = masked(some, draws=3).examples
    kept = result.examples.filter(pl.col("sample_id").is_in(some["sample_id"].to_list()))
    assert_frame_equal(again.sort("example_id"), kept.sort("example_id"))


def test_seed_and_draw_make_other_noise(result):
    one = response(result.examples, "input_ids")
    assert (one != response(masked(world()[0], draws=3, seed=1).examples, "input_ids")).any(axis=1).mean() > 0.8
    assert (one[0::3] != one[1::3]).any(axis=1).mean() > 0.8


def test_ignored_fill_is_padding():
    frame = masked(world()[0], fill="ignore").examples
    kinds, inputs, targets = (response(frame, name) for name in ("kinds", "input_ids", "target_ids"))
    behind = np.cumsum(targets == EOS, axis=1) > 1
    assert ((kinds == K.PAD) == behind).all()
    assert (inputs[behind] == EOS).all()
    assert (kinds[(targets == EOS) & ~behind] == K.MASK).any()


def test_grounding_is_kept_on_visible_clean_tokens_alone(result):
    kinds, regions = response(result.examples, "kinds"), response(result.examples, "regions")
    assert (regions[kinds == K.MASK] == -1).all()
    assert (regions[:, 1][kinds[:, 1] == K.CLEAN] == 3).all()  # "red"
    assert (regions[:, 2][kinds[:, 2] == K.CLEAN] == 5).all()  # the shape
    assert (np.delete(regions, [1, 2], axis=1) == -1).all()


def test_regions_are_null_where_grounding_is_unknown():
    rows = [sample(0, "a red ring", grounding=[{"start": 2, "end": 5, "region": 1}]), sample(1, "a red ring")]
    regions = masked(samples_of(*rows)).examples["regions"]
    assert regions.is_null().to_list() == [False, True]
    assert masked(samples_of(rows[1])).examples["regions"].is_null().all()


def test_every_sample_that_is_dropped_has_a_reason():
    texts = ["a red ring", "a zebra", "a " * 10, "a [EOS] ring"]
    rows = [sample(i, text) for i, text in enumerate(texts)] + [sample(4, "a ring", prompt="what is it")]
    result = masked(samples_of(*rows), draws=2)
    assert dict(result.rejects.select("row_id", "reason").iter_rows()) == {
        "s1": "unknown_token",
        "s2": "too_long",
        "s3": "special_token",
        "s4": "unknown_token",
    }
    assert result.rejects["detail"].to_list() == ["zebra", "10 tokens, at most 9 fit", "[EOS]", "in the prompt"]
    assert result.rows_in == result.rows_ok + result.rejects.height
    assert result.examples.height == 2 * result.rows_ok


def test_prompts_of_different_lengths_stand_side_by_side():
    rows = [sample(0, "a red ring"), sample(1, "a ring", prompt="the image"), sample(2, "a blue ring")]
    frame = masked(samples_of(*rows)).examples
    assert frame["input_ids"].list.len().to_list() == [13, 12, 13]
    assert frame["target_ids"].to_list() == [
        ids("describe the image a red ring", 13),
        ids("the image a ring", 12),
        ids("describe the image a blue ring", 13),
    ]
    assert frame["kinds"].list.count_matches(int(K.PROMPT)).to_list() == [3, 2, 3]


def test_no_usable_sample_gives_an_empty_frame_of_the_contract():
    result = masked(samples_of(sample(0, "a zebra")))
    TrainingExamples.validate(result.examples)
    assert (result.examples.height, result.rows_in, result.rejects.height) == (0, 1, 1)

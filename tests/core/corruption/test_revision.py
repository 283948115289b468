import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.corruption.revision import revision_rows
from core.corruption.settings import RevisionSettings
from data_contracts import TokenKind as K
from data_contracts import TrainingExamples
from tests.core.corruption.tables import (
    EOS,
    LENGTH,
    MASK,
    TOKENIZER,
    WORDS,
    ids,
    matrix,
    pair,
    pairs_of,
    response,
    sample,
    samples_of,
    world,
)

SAMPLES, PAIRS = world()


def revise(samples=SAMPLES, pairs=PAIRS, seed=0, length=LENGTH, **settings):
    return revision_rows(
        samples, pairs, TOKENIZER, response_length=length, seed=seed, settings=RevisionSettings(**settings)
    )


@pytest.fixture(scope="module")
def result():
    return revise(draws=4)


def parts(frame):
    return tuple(response(frame, name) for name in ("input_ids", "target_ids", "kinds"))


def test_rows_keep_the_contract_and_the_account(result):
    TrainingExamples.validate(result.examples)
    assert (result.rows_in, result.rows_ok, result.rejects.height) == (600, 600, 0)
    assert result.examples.height == 1200


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"syntax_schedule": "dynamic"},
        {"replacement": "ordinary", "syntax_rate": 0.9},
        {"pair_noise": "none"},
        {"fill": "ignore"},
    ],
)
def test_kinds_say_what_stands_there(settings):
    inputs, targets, kinds = parts(revise(draws=4, **settings).examples)
    assert ((inputs == MASK) == (kinds == K.MASK)).all()
    assert (inputs == targets)[kinds == K.CLEAN].all()
    assert (inputs != targets)[(kinds == K.SYNTAX) | (kinds == K.HALLUCINATION)].all()
    assert (inputs[kinds == K.SYNTAX] < len(WORDS)).all()
    assert not np.isin(kinds, [K.PROMPT, K.MISTAKE]).any()


def test_targets_are_the_clean_caption(result):
    captions = {row["sample_id"]: ids(row["reference"], LENGTH) for row in SAMPLES.iter_rows(named=True)}
    expected = [ids("describe the image") + captions[sample_id] for sample_id in result.examples["sample_id"]]
    np.testing.assert_array_equal(matrix(result.examples, "target_ids"), expected)


def test_a_pair_is_injected_wherever_its_changed_tokens_are_visible(result):
    changed = {row["pair_id"]: ids(row["changed_caption"], LENGTH) for row in PAIRS.iter_rows(named=True)}
    inputs, targets, kinds = parts(result.examples)
    for row, parents in enumerate(result.examples["parents"].to_list()):
        carried = changed[parents[1]] if len(parents) == 2 else targets[row]
        differs = np.array(carried) != targets[row]
        assert ((kinds[row] == K.HALLUCINATION) == (differs & (kinds[row] != K.MASK))).all()
        assert (inputs[row] == carried)[kinds[row] == K.HALLUCINATION].all()


def test_origin_and_parents_name_the_pair(result):
    frame = result.examples.with_columns(parts=pl.col("parents").list.len(), even=pl.col("sample_id").str.slice(1))
    carrying = frame["even"].cast(int) % 2 == 0
    assert ((frame["origin"] == "pair") == carrying).all()
    assert ((frame["parts"] == 2) == carrying).all()
    assert (frame["parents"].list.first() == frame["sample_id"]).all()


def test_the_draws_of_a_sample_go_through_its_pairs(result):
    per_sample = (
        result.examples.filter(pl.col("origin") == "pair").group_by("sample_id").agg(pl.col("parents").list.last())
    )
    assert (per_sample["parents"].list.n_unique() == 2).all()
    first = result.examples.filter(pl.col("example_id").str.ends_with("/0"), pl.col("origin") == "pair")
    assert 0.3 < first["parents"].list.last().str.ends_with("p0").mean() < 0.7


def test_pair_share_thins_the_pairs_out():
    assert (revise(draws=8, pair_share=0.25).examples["origin"] == "pair").mean() == pytest.approx(0.125, abs=0.02)
    assert (revise(pair_share=0.0).examples["origin"] == "caption").all()


def clean_world(count=1500, length=40):
    return samples_of(*(sample(i, "a red ring is at top") for i in range(count))), length


@pytest.mark.parametrize(("rate", "expected"), [(0.1, 0.1), (0.05, 0.05), (0.0, 0.0)])
def test_syntax_noise_hits_visible_tokens_at_its_rate(rate, expected):
    samples, length = clean_world()
    _, _, kinds = parts(revise(samples, PAIRS.clear(), length=length, syntax_rate=rate).examples)
    assert (kinds == K.SYNTAX).sum() / (kinds != K.MASK).sum() == pytest.approx(expected, abs=0.005)


def test_the_dynamic_rate_is_t_below_the_rate():
    samples, length = clean_world(4000)
    frame = revise(samples, PAIRS.clear(), length=length, syntax_rate=0.5, syntax_schedule="dynamic").examples
    _, _, kinds = parts(frame)
    t, visible = frame["t"].to_numpy(), (kinds != K.MASK).sum(axis=1)
    noisy = (kinds == K.SYNTAX).sum(axis=1)
    for low, high in ((0.0, 0.1), (0.2, 0.3), (0.4, 0.5), (0.6, 0.9)):
        among = (t >= low) & (t < high)
        expected = (np.minimum(t, 0.5) * visible)[among].sum()
        assert noisy[among].sum() == pytest.approx(expected, rel=0.1)


def test_replacements_are_uniform_over_all_ordinary_tokens_but_the_original():
    samples, length = clean_world(1000)
    inputs, targets, kinds = parts(revise(samples, PAIRS.clear(), length=length, syntax_rate=1.0).examples)
    for original in (*ids("a ring at"), EOS):
        drawn = np.bincount(inputs[(kinds == K.SYNTAX) & (targets == original)], minlength=len(WORDS))
        others = np.delete(drawn, original) if original < len(WORDS) else drawn
        assert original >= len(WORDS) or drawn[original] == 0
        assert (abs(others - others.mean()) < 5 * np.sqrt(others.mean())).all()


def test_as_in_the_official_code_a_replacement_may_be_the_original_and_is_then_clean():
    samples, length = clean_world(1000)
    frame = revise(samples, PAIRS.clear(), length=length, syntax_rate=1.0, replacement="ordinary", t_min=0.01).examples
    _, targets, kinds = parts(frame)
    words = (targets != EOS) & (kinds != K.MASK)
    assert (kinds[words] == K.CLEAN).mean() == pytest.approx(1 / len(WORDS), abs=0.01)
    assert (kinds[(targets == EOS) & (kinds != K.MASK)] == K.SYNTAX).all()


def test_bare_pairs_show_the_whole_changed_caption():
    frame = revise(pair_noise="none").examples
    changed = {row["pair_id"]: ids(row["changed_caption"], LENGTH) for row in PAIRS.iter_rows(named=True)}
    carrying = frame.filter(pl.col("origin") == "pair")
    inputs, _, kinds = parts(carrying)
    np.testing.assert_array_equal(inputs, [changed[parents[1]] for parents in carrying["parents"].to_list()])
    assert np.isin(kinds, [K.HALLUCINATION, K.CLEAN]).all()
    assert (carrying["t"] == 1.0).all()
    assert (parts(frame.filter(pl.col("origin") == "caption"))[2] == K.MASK).any()


def test_grounding_is_kept_on_visible_clean_tokens_alone(result):
    kinds, regions = response(result.examples, "kinds"), response(result.examples, "regions")
    assert ((regions[:, 1] == 3) == (kinds[:, 1] == K.CLEAN)).all()
    assert ((regions[:, 2] == 5) == (kinds[:, 2] == K.CLEAN)).all()
    assert (np.delete(regions, [1, 2], axis=1) == -1).all()


def test_neither_order_nor_company_of_rows_changes_a_row(result):
    some = SAMPLES.sample(40, shuffle=True, seed=5)
    again = revise(some, PAIRS.sample(fraction=1.0, shuffle=True, seed=1), draws=4)
    kept = result.examples.filter(pl.col("sample_id").is_in(some["sample_id"].to_list()))
    assert_frame_equal(again.examples.sort("example_id"), kept.sort("example_id"))
    assert set(again.rejects["reason"]) == {"sample_missing"}
    assert again.rows_in == again.rows_ok + again.rejects.height


def test_a_pair_that_does_not_fit_is_counted_and_its_sample_goes_without():
    samples = [sample(0, "a red ring is"), sample(1, "a zebra ring"), sample(2, "a blue ring")]
    pairs = [
        pair(0, samples[0], "red", "red blue"),
        pair(1, samples[0], "red", "zebra"),
        pair(2, samples[0], "red", "[MASK]"),
        pair(3, samples[0], "red", "blue", original_caption="a red ring"),
        pair(4, samples[0], "red", "blue", changed_caption="a blue square is"),
        pair(5, samples[0], "red", "red", changed_caption="a  red ring is"),
        pair(6, samples[0], "red ring", "blue"),
        pair(7, samples[0], "red", " ".join(["blue"] * 20)),
        pair(0, samples[1], "ring", "square"),
        pair(0, samples[2], "blue", "red"),
    ]
    result = revise(samples_of(*samples), pairs_of(*pairs), draws=2)
    assert dict(result.rejects.select("row_id", "reason").iter_rows()) == {
        "s1": "unknown_token",
        "s0/p0": "pair_length_mismatch",
        "s0/p1": "unknown_token",
        "s0/p2": "special_token",
        "s0/p3": "caption_mismatch",
        "s0/p4": "pair_length_mismatch",
        "s0/p5": "pair_no_change",
        "s0/p6": "pair_length_mismatch",
        "s0/p7": "pair_length_mismatch",
        "s1/p0": "sample_missing",
    }
    assert result.rows_in == 13 == result.rows_ok + result.rejects.height
    origins = dict(result.examples.select("example_id", "origin").iter_rows())
    assert origins == {
        "s0/revision/0": "caption",
        "s0/revision/1": "caption",
        "s2/revision/0": "pair",
        "s2/revision/1": "pair",
    }

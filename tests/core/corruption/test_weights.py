import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from data_contracts import TokenKind as K
from tests.core.corruption import literal

KINDS = {
    "mask": [K.MASK, K.CLEAN],
    "revision": [K.MASK, K.SYNTAX, K.HALLUCINATION, K.CLEAN],
    "refine": [K.MASK, K.MISTAKE, K.CLEAN],
}


def rows_of(recipe, generator, rows=5, length=12, prompt=2):
    """Random rows: prompt, response, padding."""
    kinds = generator.choice(KINDS[recipe], size=(rows, length)).astype(np.int8)
    kinds[:, :prompt] = K.PROMPT
    kinds[:, -1] = np.where(generator.random(rows) < 0.5, K.PAD, kinds[:, -1])
    return kinds, generator.uniform(0.01, 1.0, rows).astype(np.float32)


def weigh(kinds, t, recipe, **options):
    recipes = np.full(len(kinds), recipe)
    return token_weights(np.asarray(kinds, np.int8), np.asarray(t, np.float32), recipes, ObjectiveSettings(**options))


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(["mistakes", "full", "response"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_weighted_sums_are_the_equations_written_out(recipe, scope, seed):
    generator = np.random.default_rng(seed)
    kinds, t = rows_of(recipe, generator)
    log_p = -generator.exponential(size=kinds.shape)
    weights = weigh(kinds, t, recipe, refine_scope=scope)
    fast = (weights * -log_p).sum() / len(kinds)
    assert fast == pytest.approx(literal.loss(log_p, kinds, t.tolist(), recipe, scope), rel=1e-5)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sums_of_a_row(recipe, seed):
    kinds, t = rows_of(recipe, np.random.default_rng(seed))
    weights = weigh(kinds, t, recipe).astype(float)
    assert not weights[(kinds == K.PROMPT) | (kinds == K.PAD)].any()
    for row, row_t, row_weights in zip(kinds, t.astype(float), weights, strict=True):
        if recipe == "revision":
            for kind in KINDS[recipe]:
                assert row_weights[row == kind].sum() == pytest.approx(1 / row_t if kind in row else 0, rel=1e-5)
        elif recipe == "mask":
            length = ((row != K.PROMPT) & (row != K.PAD)).sum()
            assert row_weights.sum() == pytest.approx((row == K.MASK).sum() / (row_t * length), rel=1e-5)
        else:
            assert row_weights.sum() == pytest.approx(1.0 if K.MISTAKE in row else 0.0)
            assert not row_weights[row != K.MISTAKE].any()


def test_recipes_in_one_batch_do_not_see_each_other():
    generator = np.random.default_rng(1)
    parts = {recipe: rows_of(recipe, generator) for recipe in KINDS}
    kinds = np.concatenate([kinds for kinds, _ in parts.values()])
    t = np.concatenate([t for _, t in parts.values()])
    recipes = np.repeat(list(parts), 5)
    mixed = token_weights(kinds, t, recipes, ObjectiveSettings())
    alone = np.concatenate([weigh(*part, recipe) for recipe, part in parts.items()])
    np.testing.assert_array_equal(mixed, alone)


def test_without_noise_weight_t_is_ignored():
    kinds = [[K.PROMPT, K.MASK, K.MASK, K.SYNTAX, K.CLEAN]]
    assert weigh(kinds, [0.1], "revision", noise_weight="none").tolist() == [[0, 0.5, 0.5, 1, 1]]
    assert weigh(kinds, [0.1], "mask", noise_weight="none").tolist() == [[0, 0.25, 0.25, 0, 0]]


def test_the_evidence_lower_bound_weighs_masks_by_t_and_length():
    kinds = [[K.PROMPT, K.MASK, K.MASK, K.SYNTAX, K.CLEAN]]
    np.testing.assert_allclose(weigh(kinds, [0.5], "revision", noise_weight="elbo"), [[0, 0.5, 0.5, 0.25, 0.25]])
    np.testing.assert_allclose(weigh(kinds, [0.5], "mask", noise_weight="elbo"), [[0, 0.5, 0.5, 0, 0]])


def test_stage_two_never_carries_the_noise_weight():
    kinds = [[K.MISTAKE, K.CLEAN, K.MISTAKE, K.MASK]]
    for noise_weight in ("inverse_t", "none", "elbo"):
        assert weigh(kinds, [0.25], "refine", noise_weight=noise_weight).tolist() == [[0.5, 0, 0.5, 0]]


def test_span_loss_is_the_injected_span_alone_on_rows_that_show_one():
    kinds = [[K.MASK, K.HALLUCINATION, K.CLEAN], [K.MASK, K.SYNTAX, K.CLEAN]]
    weights = weigh(kinds, [0.5, 0.5], "revision", pair_loss="span")
    assert weights.tolist() == [[0, 2, 0], [2, 2, 2]]


def test_counting_over_the_batch_gives_every_token_of_a_kind_equal_weight():
    kinds = np.array([[K.MASK, K.MASK, K.MASK, K.CLEAN], [K.MASK, K.CLEAN, K.CLEAN, K.CLEAN]], np.int8)
    weights = weigh(kinds, [1.0, 1.0], "revision", kind_count="batch")
    np.testing.assert_allclose(weights / 2, np.full((2, 4), 1 / 4))  # the objective divides by the two rows
    drafts = np.array([[K.MISTAKE, K.MISTAKE, K.MISTAKE], [K.MISTAKE, K.CLEAN, K.CLEAN]], np.int8)
    np.testing.assert_allclose(weigh(drafts, [0, 0], "refine", kind_count="batch")[drafts == K.MISTAKE] / 2, 1 / 4)


def test_revision_scale_touches_stage_one_rows_alone():
    assert weigh([[K.MASK, K.CLEAN]], [0.5], "revision", revision_scale=0.1)[0].tolist() == pytest.approx([0.2, 0.2])
    assert weigh([[K.MASK, K.CLEAN]], [0.5], "mask", revision_scale=0.1)[0, 0] == pytest.approx(1.0)
    assert weigh([[K.MISTAKE, K.CLEAN]], [0.0], "refine", revision_scale=0.1)[0, 0] == 1.0

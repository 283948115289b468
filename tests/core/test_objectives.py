import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.corruption.settings import ObjectiveSettings
from core.corruption.weights import token_weights
from core.objectives import denoising, grounding
from data_contracts import TokenKind as K
from tests.core.corruption import literal

KINDS = {
    "mask": [K.MASK, K.CLEAN],
    "revision": [K.MASK, K.SYNTAX, K.HALLUCINATION, K.CLEAN],
    "refine": [K.MASK, K.MISTAKE, K.CLEAN],
}


def random_rows(recipe, seed, rows=6, length=10, vocabulary=7):
    generator = np.random.default_rng(seed)
    kinds = generator.choice([K.PROMPT, *KINDS[recipe]], size=(rows, length)).astype(np.int8)
    t = generator.uniform(0.01, 1.0, rows).astype(np.float32)
    logits = torch.from_numpy(generator.normal(size=(rows, length, vocabulary)).astype(np.float32))
    return kinds, t, logits, torch.from_numpy(generator.integers(0, vocabulary, (rows, length)))


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(["mistakes", "response"]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_denoising_is_the_equations_written_out(recipe, scope, seed):
    kinds, t, logits_BLV, targets_BL = random_rows(recipe, seed)
    weights = token_weights(kinds, t, np.full(len(t), recipe), ObjectiveSettings(refine_scope=scope))
    picked = torch.from_numpy(weights != 0)
    loss, _ = denoising(
        logits_BLV[picked],
        targets_BL[picked],
        torch.from_numpy(weights)[picked],
        torch.from_numpy(kinds)[picked],
        rows=len(t),
    )
    scores = logits_BLV.double().numpy()
    log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    log_p = np.take_along_axis(log_p, targets_BL.numpy()[..., None], axis=-1)[..., 0]
    assert loss.item() == pytest.approx(literal.loss(log_p, kinds, t.tolist(), recipe, scope), rel=1e-4, abs=1e-6)


def test_accumulating_parts_of_a_batch_gives_the_loss_and_gradient_of_the_whole():
    kinds, t, logits_BLV, targets_BL = random_rows("revision", 3)
    weights_BL = torch.from_numpy(token_weights(kinds, t, np.full(6, "revision"), ObjectiveSettings()))
    kinds_BL = torch.from_numpy(kinds)
    whole, parts = (logits_BLV.clone().requires_grad_() for _ in range(2))

    def loss_of(logits, rows):
        flat = (x[rows].flatten() for x in (targets_BL, weights_BL, kinds_BL))
        return denoising(logits[rows].flatten(0, 1), *flat, rows=6)[0]

    loss_of(whole, slice(0, 6)).backward()
    for rows in (slice(0, 2), slice(2, 6)):
        loss_of(parts, rows).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_metrics_say_how_each_kind_does():
    logits_NV = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    kinds_N = torch.tensor([K.MASK, K.MASK, K.SYNTAX, K.SYNTAX], dtype=torch.int8)
    weights_N = torch.tensor([2.0, 2.0, 1.0, 10.0])
    loss, metrics = denoising(logits_NV, torch.tensor([0, 0, 1, 2]), weights_N, kinds_N, rows=2)
    ce = -np.log([0.5, 0.2, 0.7, 1 / 3])
    assert loss.item() == pytest.approx((ce * [2, 2, 1, 10]).sum() / 2, rel=1e-5)
    expected = {
        "ce/mask": ce[:2].mean(),
        "ce/syntax": ce[2:].mean(),
        "accuracy/mask": 0.5,
        "accuracy/syntax": 0.5,
        "count/mask": 2,
        "count/syntax": 2,
        "weight/p50": 2.0,
        "weight/p90": 10.0,
        "weight/max": 10.0,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_summed_in_fp32():
    logits_NV = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets_N, ones_N, kinds_N = torch.arange(64) % 50, torch.ones(64), torch.full((64,), int(K.MASK))
    loss, _ = denoising(logits_NV, targets_N, ones_N, kinds_N, rows=1)
    exact, _ = denoising(logits_NV.double(), targets_N, ones_N, kinds_N, rows=1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_batch_without_a_supervised_token_has_no_loss_and_a_graph():
    logits_NV = torch.zeros(0, 5, requires_grad=True)
    empty_N = torch.zeros(0, dtype=torch.long)
    loss, metrics = denoising(logits_NV, empty_N, empty_N.float(), empty_N, rows=4)
    loss.backward()
    assert (loss.item(), metrics) == (0.0, {})


def test_grounding_is_the_mean_over_labelled_tokens():
    logits_BLR = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.5, 0.5]]]))
    loss, metrics = grounding(logits_BLR, torch.tensor([[-1, 0], [0, -1]], dtype=torch.int16))
    assert loss.item() == pytest.approx(-(np.log(0.9) + np.log(0.2)) / 2, rel=1e-5)
    assert metrics["grounding/accuracy"].item() == 0.5


def test_grounding_without_a_label_is_zero_with_a_graph():
    logits_BLR = torch.randn(1, 2, 3, requires_grad=True)
    loss, metrics = grounding(logits_BLR, torch.full((1, 2), -1, dtype=torch.int16))
    loss.backward()
    assert (loss.item(), metrics) == (0.0, {})
    assert (logits_BLR.grad == 0).all()

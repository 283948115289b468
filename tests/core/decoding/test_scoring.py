import torch
from hypothesis import given
from hypothesis import strategies as st

from core.decoding.scoring import Entropy, Margin, Scores, Scoring, _best, _log_of_sum

MASK, PAD = 0, 1
CPU = torch.device("cpu")


def scored(logits: torch.Tensor, ids: list[int], **options) -> Scores:
    scorer = Scoring(unwritten=(MASK, PAD), **options).on(CPU)
    return scorer.score(logits.clone(), torch.tensor(ids), None)


def some_logits(rows: int = 6, vocabulary: int = 9) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows)) * 3


@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_the_best_token_is_the_first_of_the_largest(rows: int, vocabulary: int, seed: int) -> None:
    logits = torch.randint(-4, 4, (rows, vocabulary), generator=torch.Generator().manual_seed(seed)).float()
    best, token = _best(logits)
    assert torch.equal(best, logits.amax(dim=1))
    assert token.tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_probabilities_are_over_the_tokens_that_may_be_written() -> None:
    logits = some_logits()
    found = scored(logits, [4] * 6, suppress=(5, 6))
    p = logits[:, [2, 3, 4, 7, 8]].double().softmax(dim=1)
    assert torch.allclose(found.confidence_N.double(), p.amax(dim=1))
    assert torch.allclose(found.held_N.double(), p[:, 2])
    assert not set(found.token_N.tolist()) & {MASK, PAD, 5, 6}


def test_a_softmax_over_all_counts_what_is_never_written_but_not_what_is_suppressed() -> None:
    logits = some_logits()
    logits[:, MASK] += 5
    found = scored(logits, [4] * 6, suppress=(5, 6), over_all=True)
    p = logits[:, [0, 1, 2, 3, 4, 7, 8]].double().softmax(dim=1)
    assert torch.allclose(found.confidence_N.double(), p[:, 2:].amax(dim=1))
    assert not set(found.token_N.tolist()) & {MASK, PAD, 5, 6}


def test_a_late_token_may_be_written_and_is_nowhere_counted() -> None:
    logits = some_logits()
    logits[::2, 7] = 50.0
    found = scored(logits, [4] * 6, late=(7,))
    assert found.token_N[::2].tolist() == [7, 7, 7]
    assert found.confidence_N[::2].tolist() == [0.0, 0.0, 0.0]
    others = logits[1::2, [2, 3, 4, 5, 6, 8]].double().softmax(dim=1)
    assert torch.allclose(found.confidence_N[1::2].double(), others.amax(dim=1))


def test_margin_and_entropy_are_those_of_the_softmax() -> None:
    logits = some_logits()
    p = logits[:, 2:].double().softmax(dim=1)
    best = p.sort(dim=1, descending=True).values
    margin, entropy = scored(logits, [4] * 6, measure=Margin()), scored(logits, [4] * 6, measure=Entropy())
    assert torch.allclose(margin.confidence_N.double(), best[:, 0] - best[:, 1], atol=1e-6)
    assert torch.allclose(entropy.confidence_N.double(), (p * p.log()).sum(dim=1), atol=1e-6)


def test_a_score_that_is_no_number_shows_in_the_confidence() -> None:
    logits = some_logits()
    logits[2, 4] = torch.nan
    assert scored(logits, [4] * 6).confidence_N.isnan().tolist() == [False, False, True, False, False, False]


def test_the_logarithm_of_the_sum_is_torchs_to_the_bit():
    logits_NV = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0)) * 9
    logits_NV[1] = -torch.inf
    logits_NV[2, 5:] = -torch.inf
    logits_NV[3, 0] = torch.nan
    expected_N = logits_NV.logsumexp(dim=1)
    found_N = _log_of_sum(logits_NV.clone(), logits_NV.max(dim=1).values)
    assert torch.equal(found_N.nan_to_num(nan=-1.0), expected_N.nan_to_num(nan=-1.0))

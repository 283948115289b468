import numpy as np
import pytest

from core.metrics.bootstrap import NestedResamples, central, p_value


@pytest.fixture
def scores_KS():  # noqa: N802 - its shape
    return np.random.default_rng(7).uniform(0, 100, size=(3, 20))


def test_nested_means_equal_a_loop_over_resamples_seeds_and_scenes(scores_KS):
    drawn = NestedResamples.draw(3, 20, resamples=5)
    slow = []
    for seeds_K, times_KS in zip(drawn.seed_RK, drawn.times_RKS, strict=True):
        picked = [
            score
            for seed, times_S in zip(seeds_K, times_KS, strict=True)
            for scene, times in enumerate(times_S)
            for score in [scores_KS[seed, scene]] * int(times)
        ]
        assert len(picked) == 60
        slow.append(np.mean(picked))
    assert np.allclose(drawn.means(scores_KS), slow)


def test_nested_intervals_are_wider_than_those_that_take_the_seeds_as_given():
    """Three seeds that differ by far more than their scenes do."""
    scores_KS = np.array([[20.0] * 50, [50.0] * 50, [80.0] * 50]) + np.random.default_rng(0).normal(size=(3, 50))
    low, high = central(NestedResamples.draw(3, 50).means(scores_KS))
    assert low < 25
    assert high > 75


def test_arms_are_resampled_together(scores_KS):
    drawn = NestedResamples.draw(3, 20)
    assert np.allclose(drawn.means(scores_KS + 1.5) - drawn.means(scores_KS), 1.5)


def test_p_is_small_for_a_clear_difference_and_large_for_none():
    stream = np.random.default_rng(1)
    assert p_value(stream.normal(5, 1, size=999)) == pytest.approx(2 / 1000)
    assert p_value(stream.normal(0, 1, size=999)) > 0.8

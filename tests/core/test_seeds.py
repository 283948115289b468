import numpy as np
import pytest

from core.seeds import chances, rng, stream_key, stream_keys, uniforms, uniforms_at

KEYS = stream_keys(("revision", 0), [f"s{i}" for i in range(50)])


def test_streams_never_change():
    """Stored datasets were drawn from them: a corruption that is repeated must give the same rows."""
    assert stream_key("revision", 0, "s1") == 0xBBE9ACE14F40C6F8
    assert uniforms(KEYS[:2], 2, salt=3).tolist() == [
        [0.8112587162803591, 0.9265877418502889],
        [0.08606966816557393, 0.7093905188451506],
    ]
    assert rng("replay", 0, 1).permutation(5).tolist() == [3, 1, 0, 4, 2]


@pytest.mark.parametrize("prefix", [(), ("mask",), ("revision", 0, "x")])
def test_keys_of_rows_are_those_of_their_names(prefix):
    rows = ["", "s1", "größer", "a\x1fb"]
    assert stream_keys(prefix, rows).tolist() == [stream_key(*prefix, row) for row in rows]
    assert stream_keys(prefix, []).shape == (0,)


def test_one_value_of_a_row_can_be_had_without_the_others():
    whole_NL = uniforms(KEYS, 30, salt=5)
    row_T, place_T = np.nonzero(whole_NL < 0.1)
    np.testing.assert_array_equal(uniforms_at(KEYS[row_T], place_T, salt=5), whole_NL[row_T, place_T])


def test_a_chance_is_a_uniform_below_its_probability_to_the_last_bit():
    u_NL = uniforms(KEYS, 40, salt=2)
    exact = u_NL[np.arange(50), np.arange(50) % 40]  # p equal to a draw: not below it
    for p_N in (np.full(50, 0.3), exact, np.nextafter(exact, 1), exact.astype(np.float32), np.zeros(50), np.ones(50)):
        np.testing.assert_array_equal(chances(KEYS, 40, p_N, salt=2), u_NL < p_N[:, None])


def test_uniforms_fill_their_range_evenly_and_salts_are_independent():
    one, other = uniforms(KEYS, 4000), uniforms(KEYS, 4000, salt=1)
    counts = np.histogram(one, bins=20, range=(0, 1))[0]
    assert counts.sum() == one.size
    assert np.abs(counts / one.size - 0.05).max() < 0.002
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01

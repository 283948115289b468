"""Counter-based random streams: a value depends on (seed, purpose, row, index) alone.

So neither batch size, shard, worker count nor a resume can change a token, and one value of a row can be had without
the others. Streams are vectorised over rows.

Shapes: N rows, n values a row, T single values of any rows.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream_key(*parts: str | int) -> int:
    """A 64-bit key for a named stream, e.g. stream_key(0, "revision", "scene-17", 3)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream_keys(prefix: tuple[str | int, ...], rows: list[str]) -> NDArray[np.uint64]:
    """One key a row, (N,): `stream_key(*prefix, row)`."""
    start = hashlib.blake2b("".join(f"{part}\x1f" for part in prefix).encode(), digest_size=8)
    digests = []
    for row in rows:
        stream = start.copy()
        stream.update(row.encode())
        digests.append(stream.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), in place."""
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def _integers(keys: NDArray[np.uint64], places: NDArray[np.integer], salt: int) -> NDArray[np.uint64]:
    """Integers below 2^53: value `places` (from 0) of each stream of `keys`; the two broadcast."""
    with np.errstate(over="ignore"):
        counter = (places.astype(np.uint64) + np.uint64(1) + np.uint64(salt) * np.uint64(1 << 32)) * _GOLDEN
        bits = _mix(_mix(np.array(keys, dtype=np.uint64)) + counter)
    bits >>= np.uint64(11)
    return bits


def uniforms(keys_N: NDArray[np.uint64], n: int, *, salt: int = 0) -> NDArray[np.float64]:
    """n uniforms in [0, 1) a row, (N, n); another `salt` gives an independent set from the same keys."""
    return _integers(np.asarray(keys_N)[:, None], np.arange(n), salt).astype(np.float64) * 2.0**-53


def uniforms_at(keys_T: NDArray[np.uint64], place_T: NDArray[np.int64], *, salt: int = 0) -> NDArray[np.float64]:
    """Single values, (T,): `uniforms(keys_T, n, salt=salt)[i, place_T[i]]` for every i, without the others."""
    return _integers(keys_T, place_T, salt).astype(np.float64) * 2.0**-53


def chances(keys_N: NDArray[np.uint64], n: int, p_N: NDArray[np.floating], *, salt: int = 0) -> NDArray[np.bool_]:
    """n events a row, (N, n), each with the row's probability: `uniforms(keys_N, n, salt=salt) < p_N[:, None]`.

    u = i / 2^53 < p where i < ceil(2^53 p), and 2^53 p is exact: the same bits without a float for each of them.
    """
    limit_N = np.ceil(p_N.astype(np.float64) * 2.0**53).astype(np.uint64)
    return _integers(np.asarray(keys_N)[:, None], np.arange(n), salt) < limit_N[:, None]


def rng(*parts: str | int) -> np.random.Generator:
    """A numpy Generator for a named stream, for code that draws a varying number of values."""
    return np.random.default_rng(stream_key(*parts))

"""Counter-based random streams: a value depends on (seed, purpose, row, index) alone.

So neither batch size, shard, worker count nor a resume can change a token. Streams are vectorised over rows.

Shapes: N rows, n values a row.
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
    return np.array([stream_key(*prefix, row) for row in rows], dtype=np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(keys_N: NDArray[np.uint64], n: int, *, salt: int = 0) -> NDArray[np.float64]:
    """n uniforms in [0, 1) a row, (N, n); another `salt` gives an independent set from the same keys."""
    with np.errstate(over="ignore"):
        counter = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(salt) * np.uint64(1 << 32)) * _GOLDEN
        bits = _mix(_mix(np.asarray(keys_N, dtype=np.uint64))[:, None] + counter[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def rng(*parts: str | int) -> np.random.Generator:
    """A numpy Generator for a named stream, for code that draws a varying number of values."""
    return np.random.default_rng(stream_key(*parts))

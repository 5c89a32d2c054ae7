"""Random order without state: each number follows from a seed and what it is for, on every machine and version.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
because numpy does not promise that its own streams stay the same between versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers that leaves no visible pattern."""
    with np.errstate(over="ignore"):
        z = values + GOLDEN
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def random_keys(values: NDArray[np.uint64], *seed: int) -> NDArray[np.uint64]:
    """(N,) uint64: one random number for each of `values`, another for every other `seed` (a few whole
    numbers >= 0)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in seed:
        state = mixed(state ^ np.uint64(part % 2**64))
    return mixed(values ^ state)


def random_order(count: int, *seed: int) -> NDArray[np.int64]:
    """(count,) int64: a permutation of 0 … count - 1."""
    return np.argsort(random_keys(np.arange(count, dtype=np.uint64), *seed), kind="stable")

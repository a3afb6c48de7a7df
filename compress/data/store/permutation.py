"""A seeded permutation of 0..n-1 that is computed point by point: no table, the same on every machine and version.

A balanced Feistel network on the smallest 4^h >= n with eight rounds, walked along its cycle until it falls below n
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The round function is the finalizer of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of (half XOR round key), cut to h bits; all arithmetic is modulo 2^64.
Round key r is mix(k + (r + 1) g) with k = mix(mix(seed) XOR epoch) and g = 0x9E3779B97F4A7C15.
"""

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def permute(positions: NDArray[np.int64], n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the permutation of 0..n-1 that belongs to (seed, epoch) sends each of `positions` [count] int64.

    A bijection for every n >= 1. The time is O(count) (on average at most four walks a position), the memory too.
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    values = _feistel(positions.astype(np.uint64), half_bits, keys)
    while (outside := np.flatnonzero(values >= n)).size:
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values.astype(np.int64)


def permute_epochs(places: NDArray[np.int64], n: int, *, seed: int) -> NDArray[np.int64]:
    """Where places [count] int64 in all epochs of 0..n-1, one after another, are sent by the permutations of these."""
    found = np.empty_like(places)
    for epoch in np.unique(places // n):
        here = places // n == epoch
        found[here] = permute(places[here] % n, n, seed=seed, epoch=int(epoch))
    return found


def _feistel(values: U64, half_bits: int, keys: U64) -> U64:
    bits, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(values: U64) -> U64:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> U64:
    key = _mix_one(_mix_one(seed & _MASK) ^ (epoch & _MASK))
    return np.array([_mix_one((key + (r + 1) * _GOLDEN) & _MASK) for r in range(_ROUNDS)], dtype=np.uint64)


def _mix_one(value: int) -> int:
    return int(_mix(np.array([value], dtype=np.uint64))[0])

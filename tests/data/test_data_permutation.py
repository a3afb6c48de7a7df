"""The order of the data: a bijection for every size, equal to a second implementation in plain integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compress.data.store.permutation import _round_keys, permute

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(x: int, n: int, seed: int, epoch: int) -> int:
    bits = 1
    while 4**bits < n:
        bits += 1
    key = mix(mix(seed & MASK) ^ epoch)
    while True:
        left, right = x >> bits, x & (2**bits - 1)
        for r in range(8):
            round_key = mix((key + (r + 1) * 0x9E3779B97F4A7C15) & MASK)
            left, right = right, left ^ (mix(right ^ round_key) & (2**bits - 1))
        x = (left << bits) | right
        if x < n:
            return x


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1023, 1024, 1025, 4097, 65537])
def test_a_bijection_for_every_size(n: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (2**64 + 5, 3)):
        assert sorted(permute(np.arange(n), n, seed=seed, epoch=epoch)) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**40), st.integers(0, 2**70), st.integers(0, 1000), st.data())
def test_equals_plain_integer_arithmetic(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    found = permute(np.array(positions), n, seed=seed, epoch=epoch)
    assert found.tolist() == [reference(x, n, seed, epoch) for x in positions]


def test_round_keys_of_seed_0_are_the_published_output_of_splitmix64() -> None:
    # https://prng.di.unimi.it/splitmix64.c started at 0
    assert [int(k) for k in _round_keys(0, 0)[:3]] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_seeds_and_epochs_give_unrelated_uniform_orders() -> None:
    n, seeds = 10, 4000
    images = np.array([permute(np.arange(n), n, seed=seed, epoch=seed % 3) for seed in range(seeds)])
    for position in range(n):
        assert stats.chisquare(np.bincount(images[:, position], minlength=n)).pvalue > 1e-4
    pairs = np.bincount(images[:, 0] * n + images[:, 1], minlength=n * n)
    assert stats.chisquare(pairs[pairs > 0]).pvalue > 1e-4
    assert (pairs > 0).sum() == n * (n - 1)

"""Noise: its distribution, its grid, and that it comes from the entropy and nothing else."""

import math

import numpy as np
import pytest
from scipy import stats

from wildflower.strategies.dp import noise

KEY = bytes(range(32))


def test_gaussians_are_gaussian() -> None:
    found = noise.gaussians(noise.Words(KEY), 200_001)
    assert found.shape == (200_001,)
    assert stats.kstest(found, "norm").pvalue > 1e-9
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 6 / math.sqrt(found.size)
    half = noise.CHUNK // 2  # cosines and sines of one pair stand half a chunk apart
    pairs = np.corrcoef(found[:half], found[half : 2 * half])[0, 1]
    assert abs(pairs) < 6 / math.sqrt(half)


def test_the_tails_are_there() -> None:
    found = np.abs(noise.gaussians(noise.Words(KEY), 1_000_000))
    beyond = int(np.count_nonzero(found > 4.0))
    assert stats.binomtest(beyond, found.size, float(2 * stats.norm.sf(4))).pvalue > 1e-9
    assert found.max() < 8.6


def test_signs_are_fair_and_fixed_by_their_key() -> None:
    found = noise.signs(KEY, 100_003)
    assert set(found.tolist()) == {-1.0, 1.0}
    assert abs(found.sum()) < 6 * math.sqrt(found.size)
    assert np.array_equal(found, noise.signs(KEY, 100_003))
    assert not np.array_equal(found, noise.signs(bytes(32), 100_003))


def test_a_release_is_on_a_grid_that_does_not_depend_on_the_values() -> None:
    grid = noise.grid_of(3.0)
    assert math.log2(grid).is_integer()
    for scale in (0.0, 1e-3, 1.0, 1e4):
        values = np.random.default_rng(1).normal(0, 1, 1000) * scale
        found = noise.release(values, sensitivity=3.0, noise_multiplier=1.0, entropy=KEY)
        assert np.array_equal(np.rint(found / grid) * grid, found)


def test_the_same_noise_is_added_whatever_the_values() -> None:
    """If noise depended on values by a last bit, the last bits would tell the values."""
    values = np.random.default_rng(2).normal(0, 1, 1000)
    grid = noise.grid_of(1.0)
    given = {"sensitivity": 1.0, "noise_multiplier": 2.0, "entropy": KEY}
    alone = noise.release(np.zeros(1000), **given)  # type: ignore[arg-type]
    added = noise.release(values, **given)  # type: ignore[arg-type]
    assert np.array_equal(added - alone, np.rint(values / grid) * grid)
    assert np.std(alone) == pytest.approx(2.0, rel=0.1)


def test_rounding_the_values_to_the_grid_is_in_the_noise() -> None:
    """A tiny bit for each element; 250,000 of them make noise larger by 2e-6."""
    count, step = 250_000, noise.grid_of(1.0)
    found = noise.on_grid(count, sensitivity=1.0, noise_multiplier=1.0, key=KEY)
    plain = noise.gaussians(noise.Words(KEY), count) / step
    assert np.linalg.norm(found) / np.linalg.norm(plain) - 1 == pytest.approx(500 * step, rel=0.01)


def test_other_entropy_is_other_noise_and_too_little_is_refused() -> None:
    zeros = np.zeros(8)
    found = [
        noise.release(zeros, sensitivity=1.0, noise_multiplier=1.0, entropy=bytes([i]) * 32)
        for i in range(2)
    ]
    assert not np.any(found[0] == found[1])
    with pytest.raises(ValueError, match="needs 32 secret random bytes, found 31"):
        noise.derive(bytes(31), b"x")


def test_purposes_have_keys_of_their_own() -> None:
    assert noise.derive(KEY, b"one") != noise.derive(KEY, b"two")

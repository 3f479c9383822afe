"""Rotations: the matrix of the textbook, nothing padded, norms kept, spread over all elements."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from wildflower.strategies.dp.hadamard import CHUNK, rotate, unrotate, window
from wildflower.strategies.dp.noise import signs

KEY = bytes(range(32))


@pytest.mark.parametrize("size", [1, 2, 16, 32, 128, 2048])
def test_a_power_of_two_is_signs_then_the_textbooks_matrix(size: int) -> None:
    vector = np.random.default_rng(size).normal(size=size)
    expected = hadamard(size) @ (vector * signs(KEY, size)) / math.sqrt(size)
    rotate(vector, KEY)
    assert np.allclose(vector, expected, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    st.one_of(st.integers(0, 300), st.sampled_from([CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 1]))
)
def test_rotating_keeps_the_norm_and_can_be_undone(size: int) -> None:
    vector = np.random.default_rng(size).normal(size=size)
    before, norm = vector.copy(), float(np.linalg.norm(vector))
    rotate(vector, KEY)
    assert np.linalg.norm(vector) == pytest.approx(norm, rel=1e-12)
    unrotate(vector, KEY)
    assert np.allclose(vector, before, atol=1e-12)


@pytest.mark.parametrize("size", [1000, 1024, 1025, 3000])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_one_long_element_is_spread_over_all(size: int, place: float) -> None:
    """The worst vector for a sum that must not wrap has all of its length in one element."""
    squares = np.zeros(size)
    for key in range(50):
        vector = np.zeros(size)
        vector[int(place * size)] = 1.0
        rotate(vector, key.to_bytes(32))
        squares += vector**2
        assert np.abs(vector).max() <= 9 / math.sqrt(window(size))
    assert squares.max() / 50 <= 2.2 / window(size)  # the mean is 1 or less; chance of 50 keys


def test_windows_are_powers_of_two() -> None:
    assert [window(size) for size in (0, 1, 2, 3, 4, 1023, 1024)] == [0, 1, 2, 2, 4, 512, 1024]


def test_another_key_is_another_rotation() -> None:
    one, two = np.ones(64), np.ones(64)
    rotate(one, KEY)
    rotate(two, bytes(32))
    assert not np.allclose(one, two)

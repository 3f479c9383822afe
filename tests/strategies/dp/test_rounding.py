"""Rounding: the norm of the integers is never above its bound, and sums rarely wrap."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.dp.noise import Words
from wildflower.strategies.dp.rounding import log2_overflow, rounded, rounded_norm
from wildflower.strategies.dp.skellam import probabilities, reach

KEY = bytes(range(32))


def of_length(direction: Any, reach: float) -> Any:
    norm = float(np.linalg.norm(direction))
    return direction * (reach / norm) if norm else direction


def vector_of(shape: str, size: int, reach: float) -> Any:
    rng = np.random.default_rng(size)
    match shape:
        case "one":
            return of_length(np.eye(1, size)[0], reach)
        case "flat":
            return of_length(np.ones(size), reach)
        case "halves":
            return np.full(size, 0.5 if 0.5 * math.sqrt(size) <= reach else 0.0)
        case "just above":
            return of_length(np.floor(rng.normal(0, 3, size)) + 1e-9, reach)
        case _:
            return of_length(rng.normal(size=size), reach)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 400),
    st.floats(0.0, 1e4),
    st.sampled_from(["normal", "one", "flat", "halves", "just above"]),
    st.binary(min_size=32, max_size=32),
)
def test_rounded_vectors_never_exceed_the_norm(
    size: int, reach: float, shape: str, key: bytes
) -> None:
    vector = vector_of(shape, size, reach)
    largest = rounded_norm(reach, size)
    found = rounded(vector, largest, Words(key))
    assert math.sqrt(sum(int(x) ** 2 for x in found)) <= largest
    assert np.all(np.abs(found - vector) <= 1)


def test_a_draw_that_never_fits_goes_towards_zero() -> None:
    """No seed does this at the true bound; a bound of the vector's own norm is nearly never met."""
    vector = np.full(4000, -0.75)
    found = rounded(vector, float(np.linalg.norm(vector)), Words(KEY))
    assert not found.any()


def test_rounding_has_no_bias_worth_the_name() -> None:
    vector = of_length(np.random.default_rng(3).normal(size=2000), 300.0)
    stream, draws = Words(KEY), 400
    largest = rounded_norm(300.0, 2000)
    mean = sum(rounded(vector, largest, stream) for _ in range(draws)) / draws
    share = vector - np.floor(vector)
    sigma = np.sqrt(share * (1 - share) / draws)
    assert np.max(np.abs(mean - vector) / np.maximum(sigma, 1 / draws)) < 6


def test_the_bound_is_close_to_what_happens() -> None:
    vector = of_length(np.random.default_rng(4).normal(size=10_000), 500.0)
    norm = np.linalg.norm(rounded(vector, 1e9, Words(KEY)))
    assert norm <= rounded_norm(500.0, 10_000) <= 1.01 * norm


def overflow_of(**changes: Any) -> float:
    given_ = {"size": 1, "window": 1, "reach": 1e-9, "variance": 100.0, "clients": 1, "bits": 16}
    return log2_overflow(**{**given_, **changes})


def test_the_bound_on_wrapping_is_above_the_exact_probability_of_noise() -> None:
    for variance in (1e6, 3e6, 1e7):
        half = probabilities(variance, reach(variance))
        room = 2**15 - 2
        beyond = 2 * float(half[room:].sum()) if half.size > room else 0.0
        assert beyond <= 2 ** overflow_of(variance=variance)
    assert overflow_of(variance=1e7) < -70


def test_the_bound_on_wrapping_is_above_what_happens_to_the_worst_signal() -> None:
    """Everything in one element: after random signs each element is +-1 / sqrt(window)."""
    found = overflow_of(size=1, window=16, reach=2.0**15 * 4 * 1.05, variance=1.0)
    assert found == 0.0  # it does wrap
    within = overflow_of(size=1, window=16, reach=2.0**15 * 4 / 9, variance=1.0)
    assert -70 < within < -40


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"variance": 1e7}, {"variance": 2e7}),
        ({"reach": 3000.0}, {"reach": 4000.0}),
        ({"reach": 300.0, "clients": 10}, {"reach": 300.0, "clients": 12}),
        ({"variance": 1e7, "size": 10}, {"variance": 1e7, "size": 1000}),
        ({"variance": 1e7, "bits": 32}, {"variance": 1e7, "bits": 16}),
        ({"reach": 3000.0, "window": 2}, {"reach": 3000.0, "window": 1}),
    ],
)
def test_more_load_wraps_more_often(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert overflow_of(**less) < overflow_of(**more) <= 0


def test_more_clients_than_levels_always_wrap() -> None:
    assert overflow_of(clients=2**15) == 0.0

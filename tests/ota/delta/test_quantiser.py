import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.delta.quantiser import (
    FIRST,
    Rules,
    followed,
    held,
    held_bias,
    rounded,
)

LIMIT = 127
RULES = Rules(hold=0.05)


def quantised(master: np.ndarray, axis: int | None = 0) -> tuple[np.ndarray, np.ndarray]:
    """A first release: naive scales, one per row or one for all."""
    if axis is None:
        scales = np.array([np.abs(master).max() / LIMIT], np.float32)
        return np.rint(master / scales).astype(np.int8), scales
    scales = (np.abs(master).max(axis=1) / LIMIT).astype(np.float32)
    return np.rint(master / scales[:, None]).astype(np.int8), scales


def master(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 200))


@given(st.floats(1e-30, 1e30))
def test_a_rounded_scale_is_within_a_fifth_of_a_per_cent(value: float) -> None:
    found = rounded(np.array([value]))
    assert abs(float(found[0]) / value - 1) < 2.0**-9 + 1e-6
    assert int(found.view(np.uint32)[0]) & 0x7FFF == 0  # two of its bytes hold nothing, nearly


def test_scales_follow_a_channel_that_grows_and_leave_the_others() -> None:
    weights = master()
    released, scales = quantised(weights)
    weights[2] *= 1.1
    found = followed(weights, released, scales, RULES, limit=LIMIT, axis=0)
    assert found[2] == pytest.approx(scales[2] * 1.1, rel=0.01)
    assert np.array_equal(np.delete(found, 2), np.delete(scales, 2))


def test_a_change_within_the_dead_band_moves_no_scale() -> None:
    weights = master()
    released, scales = quantised(weights)
    smaller = weights * 2.0 ** (-0.5 * RULES.dead_band)
    assert np.array_equal(followed(smaller, released, scales, RULES, limit=LIMIT, axis=0), scales)


@pytest.mark.parametrize("axis", [0, None])
def test_no_weight_lies_outside_of_what_its_scale_can_hold(axis: int | None) -> None:
    weights = master()
    released, scales = quantised(weights, axis)
    weights[1, 5] = 40.0
    found = followed(weights, released, scales, RULES, limit=LIMIT, axis=axis)
    assert np.abs(weights).max() <= found.max() * (LIMIT + 0.5)


def test_a_channel_that_was_nothing_gets_a_scale_of_its_own() -> None:
    weights = master()
    weights[3] = 0
    released, _ = quantised(master())
    released[3] = 0
    scales = np.full(6, 0.01, np.float32)
    assert followed(weights, released, scales, RULES, limit=LIMIT, axis=0)[3] == scales[3]
    weights[3] = 5.0
    found = followed(weights, released, scales, RULES, limit=LIMIT, axis=0)
    assert found[3] == pytest.approx(5.0 / 127.5, rel=0.01)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_the_error_stays_bounded_after_many_releases(seed: int, hold: float) -> None:
    rng = np.random.default_rng(seed)
    weights = master(seed)
    released, scales = quantised(weights)
    for _ in range(8):
        weights = weights * rng.normal(1.0, 0.02, (6, 1)) + rng.normal(0, 0.004, weights.shape)
        scales = followed(weights, released, scales, RULES, limit=LIMIT, axis=0)
        released = held(weights, released, scales, Rules(hold), bounds=(-LIMIT, LIMIT), axis=0)
        error = np.abs(weights / scales[:, None].astype(np.float64) - released)
        assert error.max() <= 0.5 + hold + 1e-9


def test_a_hold_changes_fewer_integers() -> None:
    weights = master()
    released, scales = quantised(weights)
    moved = weights + np.random.default_rng(1).normal(0, 0.002, weights.shape)
    changes = [
        int(
            (
                held(moved, released, scales, Rules(hold), bounds=(-LIMIT, LIMIT), axis=0)
                != released
            ).sum()
        )
        for hold in (0.0, 0.05, 0.25)
    ]
    assert changes[0] > changes[1] > changes[2]


@pytest.mark.parametrize(
    ("products", "expected"),
    [(576, [1000, 1024, 896]), (256, [1000, 1024, 896]), (1, [1015, 1017, 900])],
)
def test_a_bias_moves_on_its_grid_once_it_is_off_by_one(products: int, expected: list[int]) -> None:
    released = np.array([1000, 1000, 1000], np.int32)
    found = held_bias(
        np.array([10.15, 10.17, 9.0]),
        released,
        np.array([0.01], np.float32),
        RULES,
        products=products,
    )
    assert found.tolist() == expected
    assert found.dtype == np.int32


def test_a_first_release_keeps_no_scale_and_no_integer() -> None:
    weights = master()
    released, scales = quantised(weights)
    found = followed(weights, released, scales, FIRST, limit=LIMIT, axis=0)
    assert np.array_equal(found, rounded(found))
    assert found == pytest.approx(scales, rel=0.01)
    exact = held(weights, released, found, FIRST, bounds=(-LIMIT, LIMIT), axis=0)
    assert np.array_equal(exact, np.rint(weights / found[:, None].astype(np.float64)))

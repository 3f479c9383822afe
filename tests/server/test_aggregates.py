"""A round's sum survives its stored form, and its statistics become figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.server.aggregates import HEADER, MAGIC, figures, from_bytes, to_bytes
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.errors import StoredStateError

NUMBERS = st.floats(allow_nan=False, width=64)


def total(size: int = 4, clients: int = 2, **statistics: float) -> Sum:
    named = {name.replace("_", "-"): value for name, value in statistics.items()}
    return Sum(np.ones(size), 10.0, named, clients)


@given(
    st.lists(NUMBERS, max_size=8),
    st.floats(min_value=0, max_value=1e12),
    st.dictionaries(st.text(max_size=10), NUMBERS, max_size=4),
    st.integers(0, 10_000),
)
@settings(max_examples=30)
def test_a_sum_comes_back_bit_for_bit(
    vector: list[float], weight: float, statistics: dict[str, float], clients: int
) -> None:
    whole = Sum(np.array(vector, np.float64), weight, statistics, clients)
    found = from_bytes(to_bytes(whole))
    np.testing.assert_array_equal(found.vector, whole.vector)
    assert (found.weight, found.statistics, found.clients) == (weight, statistics, clients)


def test_equal_sums_have_equal_bytes() -> None:
    one, other = total(loss=1.0, examples=2.0), total(examples=2.0, loss=1.0)
    assert to_bytes(one) == to_bytes(other)


WHOLE = to_bytes(total(examples=3.0))
TEXT = b'{"clients": 1, "size": 0, "statistics": {}, "weight": 1.0}'


def stored(text: bytes) -> bytes:
    return HEADER.pack(MAGIC, len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:10],
        WHOLE[:-1],
        WHOLE[:-8],
        WHOLE + bytes(8),
        b"X" + WHOLE[1:],
        stored(b"[]"),
        stored(b"{}"),
        stored(TEXT.replace(b"{}", b"[]")),
        stored(TEXT.replace(b"1.0", b'"x"')),
        stored(TEXT.replace(b"1, ", b"Infinity, ")),
    ],
)
def test_what_is_no_stored_sum_is_refused(data: bytes) -> None:
    with pytest.raises(StoredStateError, match="not a stored sum"):
        from_bytes(data)


def test_the_smallest_stored_sum_is_one() -> None:
    assert from_bytes(stored(TEXT)).clients == 1


@given(st.binary(max_size=400), st.integers(0, 600), st.binary(min_size=1, max_size=8))
@settings(max_examples=60)
def test_damaged_bytes_are_a_sum_or_an_error_of_ours(
    noise: bytes, place: int, patch: bytes
) -> None:
    damaged = WHOLE[:place] + patch + WHOLE[place + len(patch) :]
    for data in (noise, damaged):
        try:
            from_bytes(data)
        except StoredStateError:
            continue


def test_our_own_statistics_become_means() -> None:
    found = figures(
        total(
            examples=8.0, loss=4.0, clipped=2.0, eval_examples=4.0, eval_correct=3.0, eval_loss=2.0
        )
    )
    assert found.trained == {"examples": 8.0, "train_loss": 0.5, "clipped": 0.25}
    assert found.measured == {"accuracy": 0.75, "loss": 0.5, "eval_examples": 4.0}


def test_an_app_s_own_means_are_of_what_the_devices_did() -> None:
    named = Sum(np.ones(1), 1.0, {"examples": 4.0, "mean.loss": 2.0, "mean.other": 0.0}, 1)
    assert figures(named).trained["loss"] == 0.5
    assert figures(named).measured == {}
    assert figures(named, evaluate_only=True).measured == {"loss": 0.5}
    assert figures(named, evaluate_only=True).trained == {}


def test_where_nobody_measured_there_is_no_figure() -> None:
    assert figures(total(size=0, clients=0)).trained == {"examples": 0.0}
    assert figures(total(eval_examples=0.0, eval_correct=0.0)).measured == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_device_s_nan_is_not_shown_as_a_figure(value: float) -> None:
    found = figures(total(examples=2.0, loss=value, eval_examples=2.0, eval_loss=value))
    assert found.trained == {"examples": 2.0, "clipped": 0.0}
    assert found.measured == {"eval_examples": 2.0}

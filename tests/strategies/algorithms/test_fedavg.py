"""Federated averaging: numbers worked out by hand, and the laws of `Algorithm`."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.algorithms.algorithm import Algorithm, Sum
from wildflower.strategies.algorithms.fedavg import FedAvg, FedAvgState
from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import LayoutError, RoundAbortedError

RULE = FedAvg()
NAMES = st.sampled_from(["loss", "examples", "correct"])
# Multiples of 1/8 of a moderate size add up exactly in float64: the laws hold bit for bit.
EIGHTHS = st.integers(-800, 800).map(lambda n: n / 8)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    vector = draw(st.lists(EIGHTHS, min_size=3, max_size=3))
    weight = draw(st.integers(1, 1000))
    statistics = draw(st.dictionaries(NAMES, EIGHTHS))
    return Update(np.array(vector, np.float32), float(weight), statistics)


def summed(cohort: list[Update]) -> Sum:
    total = RULE.zero(3)
    for update in cohort:
        total = RULE.add(total, update)
    return total


def same(left: Sum, right: Sum) -> bool:
    return (
        np.array_equal(left.vector, right.vector)
        and left.weight == right.weight
        and left.statistics == right.statistics
        and left.clients == right.clients
    )


def test_fedavg_is_an_algorithm() -> None:
    rule: Algorithm[FedAvgState] = RULE
    assert rule.local_rule() == {}
    assert not rule.needs_individual_updates


def test_the_mean_is_weighted_as_worked_out_by_hand() -> None:
    state = RULE.init(np.array([1.0, 2.0], np.float32))
    total = RULE.add(RULE.zero(2), Update(np.array([1, 0], np.float32), 3.0, {"loss": 6.0}))
    total = RULE.add(total, Update(np.array([-1, 4], np.float32), 1.0, {"loss": 1.0, "hits": 2.0}))
    after, metrics = RULE.apply(state, total)
    # (3 * 1 - 1 * 1) / 4 = 0.5 and (3 * 0 + 1 * 4) / 4 = 1
    assert RULE.model(after).tolist() == [1.5, 3.0]
    assert after.rounds == 1
    assert total.statistics == {"loss": 7.0, "hits": 2.0}
    assert metrics == {"clients": 2.0, "weight": 4.0, "step_norm": math.sqrt(1.25)}


def test_a_single_client_replaces_the_model_by_its_own() -> None:
    start, own = np.array([0.5, -3], np.float32), np.array([2, 7], np.float32)
    total = RULE.add(RULE.zero(2), Update(own - start, 17.0, {}))
    assert RULE.model(RULE.apply(RULE.init(start), total)[0]).tolist() == own.tolist()


def test_a_thousand_small_updates_are_not_lost_in_float32() -> None:
    total = RULE.add(RULE.zero(1), Update(np.array([2.0**24], np.float32), 1.0, {}))
    for _ in range(1000):
        total = RULE.add(total, Update(np.ones(1, np.float32), 1.0, {}))
    assert total.vector.tolist() == [2.0**24 + 1000]


@given(st.lists(updates(), max_size=6), st.lists(updates(), max_size=6), st.lists(updates()))
@settings(max_examples=30)
def test_merge_is_associative_and_commutative_with_zero_as_identity(
    a: list[Update], b: list[Update], c: list[Update]
) -> None:
    left, middle, right = summed(a), summed(b), summed(c)
    merge = RULE.merge
    assert same(merge(merge(left, middle), right), merge(left, merge(middle, right)))
    assert same(merge(left, middle), merge(middle, left))
    assert same(merge(left, RULE.zero(3)), left)
    assert same(merge(left, middle), summed(a + b))


@given(st.lists(updates(), min_size=1, max_size=4))
@settings(max_examples=15)
def test_the_order_of_arrival_does_not_matter(cohort: list[Update]) -> None:
    totals = [summed(list(order)) for order in itertools.permutations(cohort)]
    assert all(same(total, totals[0]) for total in totals)


@pytest.mark.parametrize(
    "total",
    [
        RULE.zero(1),
        Sum(np.zeros(1), 0.0, {}, 3),
        Sum(np.zeros(1), -1.0, {}, 3),
        Sum(np.zeros(1), math.nan, {}, 3),
        Sum(np.zeros(1), math.inf, {}, 3),
    ],
    ids=["empty", "weightless", "negative", "nan", "infinite"],
)
def test_a_sum_without_weight_makes_no_model(total: Sum) -> None:
    with pytest.raises(RoundAbortedError, match="make no mean"):
        RULE.apply(RULE.init(np.zeros(1, np.float32)), total)


def test_sums_of_another_model_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"\(2,\)"):
        RULE.add(RULE.zero(1), Update(np.zeros(2, np.float32), 1.0, {}))
    with pytest.raises(LayoutError, match=r"\(2,\)"):
        RULE.apply(RULE.init(np.zeros(1, np.float32)), Sum(np.zeros(2), 1.0, {}, 1))


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_stored_state_comes_back(values: list[float], rounds: int) -> None:
    state = FedAvgState(np.array(values, np.float32), rounds)
    assert RULE.from_bytes(RULE.to_bytes(state)) == state


def test_states_differ_by_vector_and_by_round() -> None:
    state = RULE.init(np.ones(2, np.float32))
    assert state != FedAvgState(np.ones(2, np.float32), 1)
    assert state != FedAvgState(np.zeros(2, np.float32), 0)
    assert state != "a state"


@given(st.binary(max_size=64))
@settings(max_examples=50)
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(LayoutError):
        RULE.from_bytes(data)


def test_a_truncated_state_is_refused() -> None:
    data = RULE.to_bytes(RULE.init(np.ones(4, np.float32)))
    for length in range(len(data)):
        with pytest.raises(LayoutError):
            RULE.from_bytes(data[:length])


def test_the_initial_model_stays_the_callers_own() -> None:
    vector = np.ones(2, np.float32)
    state = RULE.init(vector)
    vector[0] = 5
    assert state.vector.tolist() == [1.0, 1.0]

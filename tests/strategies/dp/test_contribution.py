"""What one unit may add: never longer than the radius, whatever it sends."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.dp.contribution import (
    Bounds,
    Contribution,
    is_within,
    parse_statistics,
    statistics_text,
)
from wildflower.strategies.errors import UpdateRefusedError

LOSS = ("loss", Bounds(0.0, 8.0))
HITS = ("hits", Bounds(-1.0, 1.0))
floats = st.floats(-(2.0**100), 2.0**100, width=32)
bounds = st.builds(
    lambda low, width: Bounds(low, low + width), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)
)
names = st.text(st.characters(exclude_characters="=:;", codec="utf-8"), min_size=1, max_size=64)
statistics = st.dictionaries(names, bounds, max_size=5).map(lambda found: tuple(found.items()))


def update_of(vector: Any, **found: float) -> Update:
    return Update(np.array(vector, np.float32), 1.0, found)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(0, 40), elements=floats),
    st.floats(1e-6, 1e6),
    floats,
    floats,
    st.floats(1e-4, 0.5),
)
def test_no_update_adds_more_than_the_radius(
    vector: Any, norm: float, loss: float, hits: float, share: float
) -> None:
    contribution = Contribution(vector.size, norm, (LOSS, HITS), share)
    joint = contribution.join(Update(vector, 1.0, {"loss": loss, "hits": hits}))
    assert np.linalg.norm(joint) <= contribution.radius * (1 + 1e-12)
    clipped = contribution.clip(Update(vector, 7.0, {"loss": loss, "hits": hits, "other": 1.0}))
    assert np.linalg.norm(clipped.vector.astype(np.float64)) <= norm
    assert clipped.weight == 1.0
    assert set(clipped.statistics) == {"loss", "hits"}
    assert 0.0 <= clipped.statistics["loss"] <= 8.0


def test_the_largest_update_reaches_the_radius() -> None:
    for size in (0, 3):
        contribution = Contribution(size, 2.0, (LOSS, HITS), 0.1)
        vector = np.full(size, 100.0, np.float32)
        joint = contribution.join(Update(vector, 1.0, {"loss": 99.0, "hits": -5.0}))
        assert np.linalg.norm(joint) == pytest.approx(contribution.radius, rel=1e-12)
    assert Contribution(3, 2.0).radius == 2.0


def test_an_update_within_the_bounds_is_left_as_it_is() -> None:
    contribution = Contribution(2, 5.0, (LOSS,))
    update = update_of([3.0, 4.0], loss=2.0)
    clipped = contribution.clip(update)
    assert np.allclose(clipped.vector, update.vector, rtol=1e-6)
    assert clipped.statistics == {"loss": 2.0}
    assert is_within(update, 5.0)
    assert not is_within(update, 4.9)


def test_splitting_undoes_joining_a_sum() -> None:
    contribution = Contribution(2, 5.0, (LOSS, HITS))
    total = Sum(np.array([1.0, -2.0]), 3.0, {"loss": 7.5, "hits": -2.0, "clipped": 4.0}, 3)
    found = contribution.split(contribution.join_sum(total), 3)
    assert found.vector.tolist() == [1.0, -2.0]
    assert (found.weight, found.clients) == (3.0, 3)
    assert found.statistics == pytest.approx({"loss": 7.5, "hits": -2.0})


def test_joining_updates_adds_up_to_joining_their_sum() -> None:
    contribution = Contribution(2, 5.0, (LOSS,))
    updates = [update_of([1.0, 2.0], loss=1.0), update_of([-3.0, 0.5], loss=6.0)]
    summed = sum((contribution.join(each) for each in updates), start=np.zeros(3))
    total = Sum(np.array([-2.0, 2.5]), 2.0, {"loss": 7.0}, 2)
    assert np.allclose(summed, contribution.join_sum(total))


def test_a_sum_of_statistics_alone_weighs_nothing() -> None:
    contribution = Contribution(0, 1.0, (LOSS,))
    assert contribution.split(np.zeros(1), 4).weight == 0.0
    assert contribution.split(np.zeros(1), 4).statistics == {"loss": 16.0}


def test_rounding_adds_to_the_sensitivity() -> None:
    contribution = Contribution(100, 1.0, (LOSS,))
    assert contribution.sensitivity() == contribution.radius
    found = contribution.sensitivity(quantum=0.01, statistic_quantum=0.5)
    expected = contribution.radius + 10 * 0.01 + contribution.amplitude / 4.0 * 0.5
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("vector", "found", "match"),
    [
        ([1.0, math.nan], {"loss": 1.0}, "NaN or infinite"),
        ([1.0], {"loss": 1.0}, "shape"),
        ([1.0, 2.0], {"hits": 1.0}, r"\['loss'\] are missing"),
        ([1.0, 2.0], {"loss": math.inf}, "no finite numbers"),
    ],
)
def test_what_cannot_be_bounded_is_refused(
    vector: list[float], found: dict[str, float], match: str
) -> None:
    contribution = Contribution(2, 1.0, (LOSS,))
    for act in (contribution.clip, contribution.join):
        with pytest.raises(UpdateRefusedError, match=match):
            act(update_of(vector, **found))


def test_a_sum_of_another_model_is_refused() -> None:
    with pytest.raises(UpdateRefusedError, match="expected 2 elements"):
        Contribution(2, 1.0).join_sum(Sum(np.zeros(3), 1.0, {}, 1))
    with pytest.raises(UpdateRefusedError, match="missing"):
        Contribution(2, 1.0, (LOSS,)).join_sum(Sum(np.zeros(2), 1.0, {}, 1))


@given(statistics)
def test_bounds_are_the_same_after_they_were_written(found: Any) -> None:
    assert parse_statistics(statistics_text(found)) == found


@given(st.text(max_size=200))
def test_other_texts_are_refused_or_bounds(text: str) -> None:
    try:
        found = parse_statistics(text)
    except ValueError:
        return
    assert parse_statistics(statistics_text(found)) == found


@pytest.mark.parametrize(
    "make",
    [
        lambda: Contribution(-1, 1.0),
        lambda: Contribution(1, 0.0),
        lambda: Contribution(1, math.nan),
        lambda: Contribution(1, 1.0, share=0.9),
        lambda: Contribution(1, 1.0, (LOSS, LOSS)),
        lambda: Contribution(1, 1.0, (("a=b", Bounds(0, 1)),)),
        lambda: Contribution(1, 1.0, (("", Bounds(0, 1)),)),
        lambda: Contribution(1, 1.0, tuple((str(i), Bounds(0, 1)) for i in range(65))),
        lambda: Bounds(1.0, 1.0),
        lambda: Bounds(math.nan, 1.0),
        lambda: Bounds(0.0, math.inf),
        lambda: parse_statistics("a" * 10_000),
    ],
)
def test_absurd_parameters_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"is|are|must|name"):
        make()

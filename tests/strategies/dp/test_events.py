"""Events: what cannot be, and that their stored form is the same event again."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.dp.events import (
    EVERYONE,
    Event,
    Gaussian,
    Sampling,
    Scheme,
    Skellam,
    Tree,
    from_fields,
    times,
    to_fields,
)
from wildflower.strategies.errors import StoredStateError

noises = st.floats(1e-3, 1e6)
counts = st.integers(0, 1000)
samplings = st.builds(
    lambda scheme, cohort, more: Sampling(scheme, cohort, cohort + more),
    st.sampled_from(Scheme),
    st.integers(1, 1000),
    st.integers(0, 1000),
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Gaussian, noises, counts, samplings),
    st.builds(Tree, noises, st.integers(1, 1000), counts),
    st.builds(
        lambda noise, l2, more, rounds, sampling: Skellam(noise, l2, l2 + more, rounds, sampling),
        noises,
        st.floats(1, 1e6),
        st.floats(0, 1e9),
        counts,
        samplings,
    ),
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("poisson")
)
KEYS = [*to_fields(Skellam(1.0, 2.0, 3.0)), "steps", "other"]


@given(events)
def test_the_stored_form_is_the_same_event(event: Event) -> None:
    assert from_fields(to_fields(event)) == event


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.sampled_from(["gaussian", "skellam", "tree", "laplace"]),
)
def test_other_fields_are_refused_or_an_event(fields: dict[str, Any], mechanism: str) -> None:
    try:
        found = from_fields({**fields, "mechanism": mechanism})
    except StoredStateError:
        return
    assert from_fields(to_fields(found)) == found


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, 1e7])
def test_absurd_noise_is_refused_by_key(noise: float) -> None:
    for make in (Gaussian, lambda z: Skellam(z, 2.0, 3.0), lambda z: Tree(z, 4)):
        with pytest.raises(ValueError, match="noise_multiplier is"):
            make(noise)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Gaussian(1.0, -1), "rounds"),
        (lambda: Tree(1.0, 0), "steps"),
        (lambda: Tree(1.0, 1, -1), "rounds"),
        (lambda: Skellam(1.0, 0.5, 1.0), "l2"),
        (lambda: Skellam(1.0, 2.0, 1.0), "l1"),
        (lambda: Skellam(1.0, 2.0, 2.0, -1), "rounds"),
        (lambda: Sampling(Scheme.POISSON, 11, 10), "cohort"),
        (lambda: Sampling(Scheme.POISSON, 1, 0), "population"),
        (lambda: Sampling("coins", 1, 1), "sampling"),  # type: ignore[arg-type]
    ],
)
def test_absurd_parameters_are_refused_by_key(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is"):
        make()


def test_rates_and_levels() -> None:
    assert EVERYONE.rate == 1.0
    assert Sampling(Scheme.POISSON, 1, 4).rate == 0.25
    assert Sampling(Scheme.NONE, 1, 4).rate == 1.0
    assert [Tree(1.0, steps).levels for steps in (1, 2, 3, 4, 1600)] == [1, 2, 2, 3, 11]


def test_an_event_times_a_count() -> None:
    assert times(Gaussian(1.0, 2), 3) == Gaussian(1.0, 6)
    assert times(Tree(1.0, 4), 0).rounds == 0

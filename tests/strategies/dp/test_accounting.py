"""Epsilon: hand-computed values, dp-accounting as a witness, and laws."""

import logging
import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from wildflower.strategies.dp.accounting import (
    LARGEST_PLD,
    ORDERS,
    Method,
    epsilon_from_rdp,
    epsilon_of,
    method_of,
    rdp_of,
)
from wildflower.strategies.dp.events import (
    Event,
    Gaussian,
    Relation,
    Sampling,
    Scheme,
    Skellam,
    Tree,
    times,
)

DELTA = 1e-5
TENTH = Sampling(Scheme.POISSON, 100, 1000)
DRAWN = Sampling(Scheme.WITHOUT_REPLACEMENT, 100, 1000)
FINE = Skellam(1.0, 3500.0, 3500.0 * 362, 1)
"""Of 16-bit residues, a hundred clients and 131,072 elements."""


def delta_of(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8, written down independently."""
    above = norm.cdf(mu / 2 - epsilon / mu)
    return float(above - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def test_nothing_released_costs_nothing() -> None:
    for events in ([], [Gaussian(1.0, 0)], [times(FINE, 0)], [Tree(1.0, 4, 0)]):
        for method in Method:
            assert epsilon_of(events, delta=DELTA, method=method) == 0.0
            assert method_of(events, method) is method


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 100), (0.3, 7), (50.0, 3)])
def test_gaussian_rounds_without_sampling_are_accounted_exactly(noise: float, rounds: int) -> None:
    found = epsilon_of([Gaussian(noise, rounds)], delta=DELTA)
    assert delta_of(found, math.sqrt(rounds) / noise) == pytest.approx(DELTA, rel=1e-6)


def test_noise_that_hides_all_but_delta_costs_nothing() -> None:
    assert epsilon_of([Gaussian(1e6)], delta=DELTA) == 0.0
    assert epsilon_of([Gaussian(1e6)], delta=1e-3, method="rdp") < 1e-3


def test_tiny_noise_costs_a_great_deal_and_overflows_nothing() -> None:
    found = epsilon_of([Gaussian(0.001, 1000)], delta=DELTA)
    assert math.isfinite(found)
    assert found > 1e8


@pytest.mark.parametrize(
    ("event", "delta", "expected"),
    [
        (Gaussian(1.0, 100, TENTH), 1e-4, (5.97, 6.82)),
        (
            Gaussian(1.0, 1000, Sampling(Scheme.POISSON, 1000, 1_000_000)),
            1e-8,
            (0.31, 1.25),
        ),
    ],
)
def test_sampled_cohorts_cost_what_was_measured(
    event: Event, delta: float, expected: tuple[float, float]
) -> None:
    found = [epsilon_of([event], delta=delta, method=method) for method in Method]
    assert found == pytest.approx(expected, abs=0.006)


def test_pld_is_what_dp_accounting_says_of_a_mixture() -> None:
    accountant = pld.PLDAccountant()
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(2)), 9
    )
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 3)
    events = [Gaussian(2.0, 4, TENTH), Gaussian(4.0, 3), Gaussian(2.0, 5, TENTH)]
    assert epsilon_of(events, delta=DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-4)


def test_a_tree_costs_what_dp_accounting_says() -> None:
    accountant = rdp.RdpAccountant(list(ORDERS), dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.SingleEpochTreeAggregationDpEvent(8.83, 1600), 2)
    found = epsilon_of([Tree(8.83, 1600, 2)], delta=1e-6, method="rdp")
    assert found == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-9)


def test_replacing_costs_what_adding_costs_with_half_the_noise() -> None:
    for event, half in ((Gaussian(2.0, 3), Gaussian(1.0, 3)), (Tree(2.0, 9), Tree(1.0, 9))):
        for method in Method:
            replaced = epsilon_of([event], delta=DELTA, relation=Relation.REPLACE, method=method)
            added = epsilon_of([half], delta=DELTA, method=method)
            assert replaced == pytest.approx(added, rel=1e-12)


def test_replacing_doubles_what_an_integer_vector_can_move() -> None:
    """Both norms double, the noise stays: coarse noise, where the L1 norm counts as well."""
    for l1 in (3.0, 9.0):
        replaced = rdp_of([Skellam(2.0, 3.0, l1, 4)], relation=Relation.REPLACE)
        assert np.allclose(replaced, rdp_of([Skellam(1.0, 6.0, 2 * l1, 4)]), rtol=1e-12)


def test_drawing_without_replacement_costs_what_dp_accounting_says() -> None:
    accountant = rdp.RdpAccountant(list(ORDERS), dp_accounting.NeighboringRelation.REPLACE_ONE)
    released = dp_accounting.GaussianDpEvent(2.0)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, released), 50)
    event = Gaussian(4.0, 50, DRAWN)
    found = epsilon_of([event], delta=DELTA, relation=Relation.REPLACE)
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)
    assert method_of([event]) is Method.RDP


def test_fine_skellam_noise_costs_what_gaussian_noise_costs() -> None:
    for rounds, expected in ((1, 4.729), (100, 96.12)):
        gaussian = epsilon_of([Gaussian(1.0, rounds)], delta=DELTA, method="rdp")
        assert gaussian == pytest.approx(expected, rel=1e-3)
        found = epsilon_of([times(FINE, rounds)], delta=DELTA)
        assert gaussian < found < gaussian * 1.0001


def test_coarse_skellam_noise_costs_more() -> None:
    gaussian = epsilon_of([Gaussian(1.0)], delta=DELTA, method="rdp")
    assert epsilon_of([Skellam(1.0, 2.0, 4.0)], delta=DELTA) > 1.1 * gaussian


def test_sampling_saves_epsilon_for_skellam_noise_too() -> None:
    alone = epsilon_of([times(FINE, 10)], delta=DELTA)
    poisson = Skellam(1.0, FINE.l2, FINE.l1, 10, Sampling(Scheme.POISSON, 10, 1000))
    assert epsilon_of([poisson], delta=DELTA) < 0.7 * alone
    drawn = Skellam(1.0, FINE.l2, FINE.l1, 10, Sampling(Scheme.WITHOUT_REPLACEMENT, 10, 1000))
    replaced = epsilon_of([times(FINE, 10)], delta=DELTA, relation=Relation.REPLACE)
    assert epsilon_of([drawn], delta=DELTA, relation=Relation.REPLACE) < 0.7 * replaced


def test_fewer_survivors_cost_more() -> None:
    found = [
        epsilon_of([Skellam(math.sqrt(n / 100), 3500.0, 1e6)], delta=DELTA) for n in (100, 80, 60)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_one_event_without_a_pld_has_all_accounted_by_rdp() -> None:
    assert method_of([Gaussian(1.0)]) is Method.PLD
    assert method_of([Gaussian(1.0), FINE]) is Method.RDP
    assert method_of([Gaussian(1.0)], "rdp") is Method.RDP
    events: list[Event] = [Gaussian(1.0), FINE]
    both = epsilon_of(events, delta=DELTA)
    assert both == epsilon_of(events[::-1], delta=DELTA, method="rdp")


@pytest.mark.parametrize(
    ("event", "relation"),
    [
        (Gaussian(1.0, 1, TENTH), Relation.REPLACE),
        (Gaussian(1.0, 1, DRAWN), Relation.ADD_REMOVE),
        (Skellam(1.0, 2.0, 3.0, 1, TENTH), Relation.REPLACE),
    ],
)
def test_sampling_that_a_relation_cannot_account_is_refused(
    event: Event, relation: Relation
) -> None:
    with pytest.raises(ValueError, match=rf"sampling .* is accounted under .* found {relation}"):
        epsilon_of([event], delta=DELTA, relation=relation)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 1e-20])
def test_an_absurd_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta is"):
        epsilon_of([Gaussian(1.0)], delta=delta)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'prv', allowed are pld, rdp"):
        epsilon_of([Gaussian(1.0)], delta=DELTA, method="prv")


def test_beyond_what_a_pld_can_hold_rdp_answers() -> None:
    event = Gaussian(0.2, 50, TENTH)
    found = epsilon_of([event], delta=DELTA)
    assert found > LARGEST_PLD
    assert found == epsilon_of([event], delta=DELTA, method="rdp")


@settings(max_examples=6, deadline=None)
@given(
    st.floats(0.7, 20),
    st.integers(1, 60),
    st.sampled_from([0, 1, 30, 400]),
    st.integers(0, 3),
)
def test_pld_is_never_above_rdp_and_never_falls_with_more_rounds(
    noise: float, rounds: int, cohort: int, more: int
) -> None:
    sampling = Sampling(Scheme.POISSON, cohort, 1000) if cohort else Sampling()
    events: Sequence[Event] = [Gaussian(noise, rounds, sampling), Tree(4 * noise, 16)]
    found = epsilon_of(events, delta=DELTA)
    assert 0 <= found <= epsilon_of(events, delta=DELTA, method="rdp") + 1e-12
    longer: list[Event] = [Gaussian(noise, rounds + more, sampling), Tree(4 * noise, 16)]
    assert epsilon_of(longer, delta=DELTA) >= found * (1 - 1e-4)


def test_the_order_of_events_does_not_matter_and_rounds_add_up() -> None:
    one: list[Event] = [Gaussian(1.0, 2), Tree(3.0, 5), FINE]
    other: list[Event] = [FINE, Gaussian(1.0), Tree(3.0, 5), Gaussian(1.0)]
    assert np.allclose(rdp_of(one), rdp_of(other), rtol=1e-12)


def test_the_classic_conversion_is_never_below_todays() -> None:
    curve = rdp_of([Gaussian(1.0, 10)])
    today = epsilon_from_rdp(curve, ORDERS, DELTA)
    assert 0 < today < epsilon_from_rdp(curve, ORDERS, DELTA, classic=True)
    assert epsilon_from_rdp(np.zeros(3), ORDERS[:3], DELTA) == 0.0


def test_dp_accounting_writes_no_log_and_keeps_its_verbosity(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from absl import logging as absl_logging

    before = absl_logging.get_verbosity()
    with caplog.at_level(logging.DEBUG):
        epsilon_of([Gaussian(0.7, 100, TENTH)], delta=DELTA)
    assert [record for record in caplog.records if record.levelno < logging.ERROR] == []
    assert absl_logging.get_verbosity() == before

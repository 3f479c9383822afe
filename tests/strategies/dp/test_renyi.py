"""Rényi curves of our own, against exact ones and against sums over all outcomes."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from scipy.special import logsumexp

from wildflower.strategies.dp import renyi
from wildflower.strategies.dp.skellam import probabilities

ORDERS = np.array([2.0, 3.0, 5.0, 8.0, 16.0, 32.0])


def gaussian(noise: float) -> renyi.Curve:
    return lambda orders: orders / (2 * noise**2)


@pytest.mark.parametrize(
    ("shift", "variance"), [(1, 0.3), (1, 1.0), (5, 2.0), (1, 20.0), (3, 50.0), (10, 4000.0)]
)
def test_skellam_noise_is_within_its_bound(shift: int, variance: float) -> None:
    """In one dimension the divergence is a sum that can be written down."""
    largest = int(14 * math.sqrt(variance)) + 40
    half = probabilities(variance, largest + shift)
    weights = np.concatenate((half[:0:-1], half))
    moved, still = weights[shift:], weights[: weights.size - shift]
    positive = (moved > 1e-300) & (still > 1e-300)
    p, q = moved[positive], still[positive]
    for order in (1.05, 1.5, 2.0, 2.5, 4.0, 8.0):
        logs = order * np.log(p) + (1 - order) * np.log(q)
        exact = float(logsumexp(logs)) / (order - 1)
        bound = float(renyi.skellam(np.array([order]), shift, shift, variance)[0])
        assert exact <= bound * (1 + 1e-9)
        assert bound <= exact * (1 + 6 / min(variance, variance**0.5))


def test_bounds_worked_out_by_hand() -> None:
    at_two = np.array([2.0])
    assert renyi.skellam(at_two, 1.0, 1.0, 0.5).tolist() == [2.0 + 3.0]  # the second of the two
    assert renyi.skellam(at_two, 1.0, 1.0, 2.0).tolist() == [0.5 + 9 / 16]  # the first
    at_three = np.array([3.0])
    moments = math.exp(1.0), math.exp(2 * 1.5)  # of the curve a / 2, at orders 2 and 3
    coins = 0.75**2 * 1.5 + 3 * 0.25**2 * 0.75 * moments[0] + 3 * 0.25**3 * moments[1]
    found = renyi.poisson_sampled(gaussian(1.0), 0.25, at_three)
    assert found[0] == pytest.approx(math.log(coins) / 2)
    drawn = 1 + 3 * 0.25**2 * min(4 * (moments[0] - 1), 2 * moments[0]) + 0.25**3 * 2 * moments[1]
    found = renyi.sampled_without_replacement(gaussian(1.0), 0.25, at_three)
    assert found[0] == pytest.approx(math.log(drawn) / 2)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("noise", [0.8, 2.0])
def test_the_general_bound_of_coins_is_above_the_exact_curve(rate: float, noise: float) -> None:
    accountant = rdp.RdpAccountant(list(ORDERS))
    released = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, released))
    found = renyi.poisson_sampled(gaussian(noise), rate, ORDERS)
    assert np.all(found >= accountant.rdp * (1 - 1e-9))
    assert np.all(found <= gaussian(noise)(ORDERS) * (1 + 1e-12))
    assert found[0] == pytest.approx(accountant.rdp[0], rel=1e-9)  # no factor of 3 at order 2


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
def test_the_general_bound_without_replacement_is_above_the_gaussian_one(rate: float) -> None:
    accountant = rdp.RdpAccountant(list(ORDERS), dp_accounting.NeighboringRelation.REPLACE_ONE)
    released = dp_accounting.GaussianDpEvent(2.0)
    drawn = dp_accounting.SampledWithoutReplacementDpEvent(1000, int(rate * 1000), released)
    accountant.compose(drawn)
    found = renyi.sampled_without_replacement(gaussian(2.0), rate, ORDERS)
    assert np.all(found >= np.minimum(accountant.rdp, gaussian(2.0)(ORDERS)) * (1 - 1e-9))
    assert np.all(found <= gaussian(2.0)(ORDERS) * (1 + 1e-12))


def test_everyone_in_the_cohort_is_no_sampling() -> None:
    for bound in (renyi.poisson_sampled, renyi.sampled_without_replacement):
        assert np.array_equal(bound(gaussian(1.0), 1.0, ORDERS), gaussian(1.0)(ORDERS))


def test_there_is_no_bound_between_integers() -> None:
    for bound in (renyi.poisson_sampled, renyi.sampled_without_replacement):
        found = bound(gaussian(1.0), 0.1, np.array([1.5, 2.0, 2.5]))
        assert np.isinf(found).tolist() == [True, False, True]

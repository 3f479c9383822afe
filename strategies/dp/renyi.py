"""Rényi curves that dp-accounting does not have: Skellam noise, and any mechanism when sampled.

    skellam(a) <= a l2^2 / (2 v) + min(((2a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v))

for noise of variance v on every element. The bound adds up over elements, so one element tells
whether it holds at an order; the tests compare it with exact sums, between integers too. Sampling
bounds hold for every mechanism, at integer orders; elsewhere they are infinite, which only costs
tightness.

Sources: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated
Learning", NeurIPS 2021, theorem 3.5; Zhu and Wang, "Poisson Subsampled Rényi Differential Privacy",
ICML 2019, theorem 6; Wang, Balle and Kasiviswanathan, "Subsampled Rényi Differential Privacy and
Analytical Moments Accountant", AISTATS 2019, theorem 9.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Curve = Callable[[Floats], Floats]
"""Rényi divergences at given orders."""


def skellam(orders: Floats, l1: float, l2: float, variance: float) -> Floats:
    """Return the curve of Skellam noise, shape (len(orders),).

    Args:
        orders: Each above 1.
        l1: L1 sensitivity, in integer units.
        l2: L2 sensitivity, in integer units.
        variance: Of the noise on every element.
    """
    gaussian = orders * l2**2 / (2 * variance)
    excess = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    found: Floats = gaussian + np.minimum(excess, 3 * l1 / (2 * variance))
    return found


def poisson_sampled(curve: Curve, rate: float, orders: Floats) -> Floats:
    """Return the curve of a mechanism on a cohort drawn by independent coins (add-remove).

    Args:
        curve: The mechanism's own.
        rate: Probability that a unit is in the cohort, within (0, 1].
        orders: Each above 1; integers get a bound.
    """
    if rate == 1:
        return curve(orders)

    def one(order: int) -> float:
        sizes = np.arange(3, order + 1, dtype=np.float64)
        powers = np.arange(2, order + 1, dtype=np.float64)
        divergences = curve(powers)
        first = (order - 1) * math.log1p(-rate) + math.log1p(rate * (order - 1))
        second = (
            _log_binomial(order, powers[:1])
            + 2 * math.log(rate)
            + (order - 2) * math.log1p(-rate)
            + divergences[:1]
        )
        rest = (
            math.log(3)
            + _log_binomial(order, sizes)
            + sizes * math.log(rate)
            + (order - sizes) * math.log1p(-rate)
            + (sizes - 1) * divergences[1:]
        )
        return _log_sum(np.concatenate(([first], second, rest))) / (order - 1)

    return _at_integers(one, curve, orders)


def sampled_without_replacement(curve: Curve, rate: float, orders: Floats) -> Floats:
    """Return the curve of a mechanism on a cohort of fixed size (replace).

    Args:
        curve: The mechanism's own, under replacement of one unit.
        rate: Share of the population that is drawn, within (0, 1].
        orders: Each above 1; integers get a bound.
    """
    if rate == 1:
        return curve(orders)

    def one(order: int) -> float:
        powers = np.arange(2, order + 1, dtype=np.float64)
        divergences = curve(powers)
        at_two = float(divergences[0])
        moments = math.log(2) + (powers - 1) * divergences
        moments[0] = min(math.log(4) + _log_expm1(at_two), math.log(2) + at_two)
        terms = _log_binomial(order, powers) + powers * math.log(rate) + moments
        return _log_sum(np.concatenate(([0.0], terms))) / (order - 1)

    return _at_integers(one, curve, orders)


def _at_integers(one: Callable[[int], float], curve: Curve, orders: Floats) -> Floats:
    """Return a bound at each integer order, never above the unsampled curve."""
    found = [one(int(order)) if float(order).is_integer() else math.inf for order in orders]
    bounded: Floats = np.minimum(
        np.array(found), np.where(np.isinf(found), math.inf, curve(orders))
    )
    return bounded


def _log_binomial(n: int, k: Floats) -> Floats:
    return np.array([math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in k])


def _log_expm1(x: float) -> float:
    """Return log(exp(x) - 1) for x above 0."""
    return x + math.log(-math.expm1(-x))


def _log_sum(logs: Floats) -> float:
    """Return log(sum(exp(logs)))."""
    largest = float(np.max(logs))
    return largest + math.log(float(np.sum(np.exp(logs - largest))))

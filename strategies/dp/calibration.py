"""How much noise, or how many rounds, a budget allows.

    noise_for(release, budget)    smallest noise multiplier whose events cost at most epsilon
    rounds_for(release, budget)   most rounds that cost at most epsilon

`release` maps what is sought to the events it leads to, so that every mechanism, sampling and
mixture is planned by the same search:

    noise_for(lambda z: [Gaussian(z, 200, Sampling(Scheme.POISSON, 100, 1000))], budget)

Epsilon falls with the noise and rises with the rounds; the searches rely on nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from wildflower.strategies.dp import limits
from wildflower.strategies.dp.accounting import Method, epsilon_of
from wildflower.strategies.dp.events import Event, Relation

PRECISION: Final = 1e-3
"""Relative: a noise multiplier is found to three digits, rounded up."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent.

    Attributes:
        epsilon: Largest epsilon.
        delta: Within (0, 1), well below one over the number of units.
        relation: Which data sets are neighbours.
        method: How epsilon is computed.
    """

    epsilon: float
    delta: float
    relation: Relation = Relation.ADD_REMOVE
    method: Method = Method.PLD

    def __post_init__(self) -> None:
        """Refuse a budget that makes no sense."""
        limits.number("epsilon", self.epsilon, 1e-3, 1e3)
        limits.number("delta", self.delta, 1e-15, 0.5)

    def price_of(self, events: Sequence[Event], method: Method | None = None) -> float:
        """Return what the events together cost.

        Raises:
            ValueError: A sampling that cannot be accounted under this relation.
        """
        return epsilon_of(
            events, delta=self.delta, relation=self.relation, method=method or self.method
        )

    def allows(self, events: Sequence[Event], method: Method | None = None) -> bool:
        """Tell whether the events together cost no more than epsilon.

        Raises:
            ValueError: A sampling that cannot be accounted under this relation.
        """
        return self.price_of(events, method) <= self.epsilon


def noise_for(release: Callable[[float], Sequence[Event]], budget: Budget) -> float:
    """Return the smallest noise multiplier whose events cost at most the budget.

    Args:
        release: What a noise multiplier leads to.
        budget: What may be spent.

    Raises:
        ValueError: No noise multiplier within its range is enough.
    """
    low, high = limits.SMALLEST_NOISE, limits.LARGEST_NOISE
    if not budget.allows(release(high), Method.RDP):
        raise ValueError(
            f"no noise multiplier up to {high:g} keeps epsilon at {budget.epsilon:g}"
            f" with delta {budget.delta:g}"
        )
    if budget.method is Method.RDP:
        return _smallest(release, budget, (low, high), PRECISION)
    by_rdp = replace(budget, method=Method.RDP)  # cheap, and never too little
    enough = _smallest(release, by_rdp, (low, high), 0.05)
    below = enough * 0.8
    while below > low and budget.allows(release(below)):
        enough, below = below, below * 0.8
    return _smallest(release, budget, (max(below, low), enough), PRECISION)


def _smallest(
    release: Callable[[float], Sequence[Event]],
    budget: Budget,
    between: tuple[float, float],
    precision: float,
) -> float:
    """Return the smallest noise that is enough; the upper one of `between` is.

    Epsilon is close to a power of the noise, so its logarithm is close to a line in that of the
    noise, which Brent's search finds the end of within a few prices.
    """
    from scipy.optimize import brentq

    @cache
    def excess(log_noise: float) -> float:
        """Return the logarithm of how many times the budget is spent, within +-50."""
        spent = budget.price_of(release(math.exp(log_noise))) / budget.epsilon
        return math.log(min(max(spent, 1e-20), 1e20))

    low, high = (math.log(noise) for noise in between)
    if excess(low) <= 0:
        return between[0]
    found = float(brentq(excess, low, high, xtol=precision / 4))
    while excess(found) > 0:
        found += precision / 4
    return math.exp(found)


def rounds_for(
    release: Callable[[int], Sequence[Event]], budget: Budget, *, most: int = 100_000
) -> int:
    """Return the most rounds, at most `most`, that cost no more than the budget; may be 0.

    Args:
        release: What a number of rounds leads to.
        budget: What may be spent.
        most: Where the search ends.

    Raises:
        ValueError: `most` is beyond its range.
    """
    limits.whole("most", most, 1, limits.MAX_ROUNDS)
    surely = _most(release, budget, Method.RDP, (0, most + 1))  # cheap, and never too many
    if budget.method is Method.RDP or surely == most:
        return surely
    low, high = surely, min(2 * surely + 1, most + 1)
    while high <= most and budget.allows(release(high)):
        low, high = high, min(2 * high, most + 1)
    return _most(release, budget, budget.method, (low, high))


def _most(
    release: Callable[[int], Sequence[Event]],
    budget: Budget,
    method: Method,
    between: tuple[int, int],
) -> int:
    """Return the most rounds that are allowed: the first of `between` are, the second are not."""
    low, high = between
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if budget.allows(release(middle), method) else (low, middle)
    return low

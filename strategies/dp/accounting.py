"""What events cost: epsilon at a delta.

Privacy loss distributions (`pld`, the default) give the tightest epsilon; Rényi differential
privacy (`rdp`) is the cross-check, and carries what has no PLD here: Skellam noise, whose
many-dimensional loss is not that of a one-dimensional pair, and sampling without replacement.
One event without a PLD has the whole sum accounted by RDP; `method_of` says which it was.
Both are upper bounds, so `pld` returns the smaller of the two.

    relation      sensitivity   sampling that is accounted
    add-remove    S             none, Poisson
    replace       2 S           none, without replacement

Noise multipliers are relative to S, whatever the relation. dp-accounting itself is of two minds:
under REPLACE_ONE its PLD of a Gaussian doubles the sensitivity, its RDP does not. So nothing here
hands that relation a Gaussian without sampling; the doubling is done before, for both.

Sources: Koskela et al. 2020 and Doroshenko et al. 2022 (PLD, by dp-accounting); Balle and Wang
2018, theorem 8 (Gaussian without sampling, exact); Agarwal, Kairouz and Liu 2021, theorem 3.5
(Skellam); Zhu and Wang 2019, theorem 6 (any mechanism under Poisson sampling); Wang, Balle and
Kasiviswanathan 2019, theorem 9 (without replacement); Canonne et al. 2020, proposition 12 (from
RDP to epsilon); Mironov 2017, proposition 3 (the conversion that older papers used).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from typing import Any, Final, assert_never

import numpy as np
import numpy.typing as npt

from wildflower.strategies.dp import limits
from wildflower.strategies.dp.events import Event, Gaussian, Relation, Scheme, Skellam, Tree

Floats = npt.NDArray[np.float64]


@unique
class Method(StrEnum):
    """How epsilon is computed."""

    PLD = "pld"
    RDP = "rdp"


ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 128, 256, 512)
"""Rényi orders; integers beyond 11, because sampled Skellam is bounded at integers only."""

INTERVAL: Final = 8e-3
"""A PLD's grid, times the root of the rounds. Every grid gives an upper bound; this one is within
0.1 % of one ten times as fine, in a tenth of the time."""

LARGEST_PLD: Final = 64.0
"""Beyond this epsilon a PLD takes gigabytes and tells nothing: RDP answers."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Events by how they are accounted.

    Attributes:
        mu: Of one Gaussian that all Gaussian releases without sampling amount to: the ratio of
            sensitivity and standard deviation.
        sampled: Gaussian releases of sampled cohorts.
        skellam: Skellam releases.
    """

    mu: float
    sampled: tuple[Gaussian, ...]
    skellam: tuple[Skellam, ...]


def epsilon_of(
    events: Sequence[Event],
    *,
    delta: float,
    relation: Relation = Relation.ADD_REMOVE,
    method: Method | str = Method.PLD,
) -> float:
    """Return the epsilon that the events together amount to; 0 for none.

    Args:
        events: What was released; their order does not matter.
        delta: Within (0, 1), well below one over the number of units.
        relation: Which data sets are neighbours.
        method: "pld" or "rdp".

    Raises:
        ValueError: A delta beyond its range, a method that does not exist, or a sampling that
            cannot be accounted under this relation.
    """
    limits.number("delta", delta, 1e-15, 0.5)
    parts = _parts(events, relation)
    if method_of(events, method) is Method.RDP:
        return epsilon_from_rdp(_rdp(parts, relation, ORDERS), ORDERS, delta)
    if not parts.sampled:
        return _gaussian_epsilon(parts.mu, delta)
    bound = epsilon_from_rdp(_rdp(parts, relation, ORDERS), ORDERS, delta)
    return bound if bound > LARGEST_PLD else min(bound, _pld_epsilon(parts, delta))


def method_of(events: Sequence[Event], asked: Method | str = Method.PLD) -> Method:
    """Return the method that accounts these events if `asked` is wanted.

    Raises:
        ValueError: There is no such method.
    """
    if asked not in set(Method):
        raise ValueError(f"method is {asked!r}, allowed are {', '.join(Method)}")
    counted = [event for event in events if event.rounds]
    has_pld = not any(
        isinstance(event, Skellam)
        or (isinstance(event, Gaussian) and event.sampling.scheme is Scheme.WITHOUT_REPLACEMENT)
        for event in counted
    )
    return Method.PLD if has_pld and asked == Method.PLD else Method.RDP


def rdp_of(
    events: Sequence[Event],
    orders: Sequence[float] = ORDERS,
    *,
    relation: Relation = Relation.ADD_REMOVE,
) -> Floats:
    """Return the Rényi divergence that the events together amount to, shape (len(orders),).

    Raises:
        ValueError: A sampling that cannot be accounted under this relation.
    """
    return _rdp(_parts(events, relation), relation, orders)


def epsilon_from_rdp(
    rdp: Floats, orders: Sequence[float], delta: float, *, classic: bool = False
) -> float:
    """Return the smallest epsilon that a Rényi curve gives at `delta`.

    Args:
        rdp: Rényi divergences, shape (len(orders),), infinite where nothing is known.
        orders: Their orders, each above 1.
        delta: Within (0, 1).
        classic: Convert as papers did before 2020, to compare with what they printed.
    """
    if not rdp.any():
        return 0.0
    order = np.asarray(orders, np.float64)
    if classic:
        found = rdp - math.log(delta) / (order - 1)
    else:
        found = rdp + np.log1p(-1 / order) - np.log(delta * order) / (order - 1)
    return max(0.0, float(np.min(found)))


def _parts(events: Sequence[Event], relation: Relation) -> _Parts:
    """Sort events by how they are accounted; equal ones are put together."""
    precision, counts = 0.0, dict[Gaussian | Skellam, int]()
    for event in events:
        if event.rounds == 0:
            continue
        match event:
            case Tree():
                precision += event.rounds * event.levels / event.noise_multiplier**2
            case Gaussian() if event.sampling.scheme is Scheme.NONE:
                precision += event.rounds / event.noise_multiplier**2
            case Gaussian() | Skellam():
                _require_accounted(event.sampling.scheme, relation)
                single = replace(event, rounds=1)
                counts[single] = counts.get(single, 0) + event.rounds
            case _:
                assert_never(event)
    grouped = [replace(event, rounds=rounds) for event, rounds in counts.items()]
    return _Parts(
        math.sqrt(precision) * _moves(relation),
        tuple(event for event in grouped if isinstance(event, Gaussian)),
        tuple(event for event in grouped if isinstance(event, Skellam)),
    )


def _moves(relation: Relation) -> int:
    """Return by how many clipping norms neighbours differ."""
    return 1 if relation is Relation.ADD_REMOVE else 2


def _require_accounted(scheme: Scheme, relation: Relation) -> None:
    wanted = {
        Scheme.POISSON: Relation.ADD_REMOVE,
        Scheme.WITHOUT_REPLACEMENT: Relation.REPLACE,
    }.get(scheme, relation)
    if relation is not wanted:
        raise ValueError(f"sampling {scheme} is accounted under {wanted} only, found {relation}")


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of a Gaussian whose sensitivity is `mu` standard deviations."""
    from scipy.special import log_ndtr

    def log_ratio(epsilon: float) -> float:
        """Return log(delta(epsilon) / delta)."""
        first = float(log_ndtr(mu / 2 - epsilon / mu))
        second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        rest = -math.expm1(min(second - first, 0.0))
        return first - math.log(delta) + (math.log(rest) if rest else -math.inf)

    if mu == 0 or log_ratio(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while log_ratio(high) > 0:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if log_ratio(middle) > 0 else (low, middle)
    return high


def _pld_epsilon(parts: _Parts, delta: float) -> float:
    import dp_accounting
    from dp_accounting import pld

    rounds = sum(event.rounds for event in parts.sampled)
    interval = min(max(INTERVAL / math.sqrt(rounds), 1e-4), 1e-3)
    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    with _quiet():
        accountant = pld.PLDAccountant(neighbours, interval)
        for event in parts.sampled:
            accountant.compose(_dp_event(event, 1), event.rounds)
        if parts.mu:
            accountant.compose(dp_accounting.GaussianDpEvent(1 / parts.mu))
        return float(accountant.get_epsilon(delta))


def _rdp(parts: _Parts, relation: Relation, orders: Sequence[float]) -> Floats:
    import dp_accounting
    from dp_accounting import rdp

    order = np.asarray(orders, np.float64)
    neighbours = {
        Relation.ADD_REMOVE: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.REPLACE: dp_accounting.NeighboringRelation.REPLACE_ONE,
    }[relation]
    total: Floats = order * parts.mu**2 / 2
    if parts.sampled:
        with _quiet():
            accountant = rdp.RdpAccountant(list(orders), neighbours)
            for event in parts.sampled:
                accountant.compose(_dp_event(event, _moves(relation)), event.rounds)
            total = total + np.nan_to_num(accountant.rdp, nan=math.inf)
    for released in parts.skellam:
        total = total + released.rounds * _skellam(released, _moves(relation), order)
    return total


def _dp_event(event: Gaussian, moves: int) -> Any:
    """Return dp-accounting's form of one round of a sampled Gaussian."""
    import dp_accounting as dp

    released = dp.GaussianDpEvent(event.noise_multiplier / moves)
    if event.sampling.scheme is Scheme.POISSON:
        return dp.PoissonSampledDpEvent(event.sampling.rate, released)
    sampling = event.sampling
    return dp.SampledWithoutReplacementDpEvent(sampling.population, sampling.cohort, released)


def _skellam(event: Skellam, moves: int, orders: Floats) -> Floats:
    """Return the Rényi curve of one round, sampled or not; infinite where there is no bound."""
    from wildflower.strategies.dp import renyi

    variance = (event.noise_multiplier * event.l2) ** 2

    def curve(order: Floats) -> Floats:
        return renyi.skellam(order, event.l1 * moves, event.l2 * moves, variance)

    match event.sampling.scheme:
        case Scheme.NONE:
            return curve(orders)
        case Scheme.POISSON:
            return renyi.poisson_sampled(curve, event.sampling.rate, orders)
        case Scheme.WITHOUT_REPLACEMENT:
            return renyi.sampled_without_replacement(curve, event.sampling.rate, orders)
        case _:
            assert_never(event.sampling.scheme)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp-accounting's hundreds of lines about single orders out of the log."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)

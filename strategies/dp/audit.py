"""Does a mechanism keep its promise? A lower bound on epsilon from what it released.

Run the mechanism many times with a canary in it, many times without, score every release by how
much it looks like the canary, and try to tell the two apart. No (epsilon, delta)-private mechanism
lets any test have

    P(says "in" | in) > exp(epsilon) P(says "in" | out) + delta

so rates that were seen, with their confidence bounds, are a lower bound on epsilon. A bound above
the claim proves the mechanism broken; one below proves nothing. The test's threshold is chosen on
one half of the trials and judged on the other.

Source: Jagielski, Ullman and Oprea, "Auditing Differentially Private Machine Learning", NeurIPS
2020, algorithm 1; Clopper and Pearson 1934.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.dp import limits

Scores = npt.NDArray[np.float64]

FEWEST: Final = 20  # trials of each kind; fewer bound nothing


@dataclass(frozen=True, slots=True)
class _Rates:
    """Of n trials without and m trials with the canary, how many a test called "in"."""

    false: int
    of: int
    true: int
    within: int


def epsilon_lower_bound(
    without: Scores, canary: Scores, *, delta: float, confidence: float = 0.99
) -> float:
    """Return an epsilon that the mechanism exceeds with this confidence; 0 if none was shown.

    Args:
        without: Scores of independent releases without the canary, shape (n,).
        canary: Scores of independent releases with it, shape (m,); higher looks more like it.
        delta: The delta of the claim.
        confidence: Within (0, 1).

    Raises:
        ValueError: Too few trials, or a parameter beyond its range.
    """
    limits.number("delta", delta, 0.0, 0.5)
    limits.number("confidence", confidence, 0.5, 1 - 1e-12)
    limits.whole("trials", int(min(without.size, canary.size)), FEWEST, 10**9)
    error = (1 - confidence) / 4  # two directions, two bounds each
    candidates = np.quantile(np.concatenate((without[::2], canary[::2])), np.linspace(0, 1, 101))
    best = max(
        candidates,
        key=lambda threshold: _bound(_rates(without[::2], canary[::2], threshold), delta, error),
    )
    return _bound(_rates(without[1::2], canary[1::2], best), delta, error)


def _rates(without: Scores, canary: Scores, threshold: float) -> _Rates:
    false = int(np.count_nonzero(without > threshold))
    true = int(np.count_nonzero(canary > threshold))
    return _Rates(false, without.size, true, canary.size)


def _bound(rates: _Rates, delta: float, error: float) -> float:
    """Return the larger bound of the two directions: saying "in", and saying "out"."""
    says_in = _direction(rates.true, rates.within, rates.false, rates.of, (delta, error))
    missed, rejected = rates.within - rates.true, rates.of - rates.false
    says_out = _direction(rejected, rates.of, missed, rates.within, (delta, error))
    return max(says_in, says_out, 0.0)


def _direction(hits: int, of: int, misses: int, within: int, given: tuple[float, float]) -> float:
    from scipy.stats import beta

    delta, error = given
    low = float(beta.ppf(error, hits, of - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - error, misses + 1, within - misses)) if misses < within else 1.0
    return math.log((low - delta) / high) if low > delta else -math.inf

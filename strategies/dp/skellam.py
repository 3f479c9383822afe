"""Skellam noise from an AES keystream, by an alias table.

    P(k) = exp(-v) I_k(v)       variance v; the difference of two Poisson variables of mean v / 2

Sums of Skellam variables are Skellam with the sum of the variances, which is what lets many
devices each add a small part of the noise. Probabilities come from the ratios I_k / I_(k-1) by
downward recurrence, which is stable, so no special functions are needed on a device.

    draw: a 32-bit word picks a column of the table, a 64-bit word picks within it

What lies beyond the table has probability below 2^-70; within it each probability is right to
about 1e-12 (rounding of float64), the draws add 2^-64.

Source: Walker 1977 and Vose 1991 (alias tables); Amos 1974 (ratios of Bessel functions).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.dp import limits
from wildflower.strategies.dp.noise import Words

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SMALLEST: Final = 1e-6
LARGEST: Final = 2.0**26  # a deviation of 8,192: the table has 2^18 columns and takes 0.2 s to make
TAIL: Final = 70 * math.log(2)
CHUNK: Final = 1 << 16  # draws


@dataclass(frozen=True, slots=True, eq=False)
class Skellam:
    """A table from which Skellam variables of one variance are drawn.

    Attributes:
        largest: Largest absolute value that is drawn.
        threshold: Of each column, below which its own value is drawn, shape (2^k,), uint64.
        other: Of each column, the value drawn instead, plus `largest`, shape (2^k,).
    """

    largest: int
    threshold: npt.NDArray[np.uint64] = field(repr=False)
    other: Integers = field(repr=False)

    def draw(self, stream: Words, count: int) -> Integers:
        """Return the next `count` variables, shape (count,)."""
        found = np.empty(count, np.int64)
        mask = np.uint32(self.threshold.size - 1)
        for start in range(0, count, CHUNK):
            part = found[start : start + CHUNK]
            column = (stream.take(part.size, "<u4") & mask).astype(np.int64)
            is_own = stream.take(part.size) < self.threshold[column]
            np.subtract(np.where(is_own, column, self.other[column]), self.largest, out=part)
        return found


@lru_cache(maxsize=4)
def skellam(variance: float) -> Skellam:
    """Return the table of one variance.

    Raises:
        ValueError: The variance is not within [1e-6, 2^26].
    """
    largest = reach(limits.number("variance", variance, SMALLEST, LARGEST))
    half = probabilities(variance, largest)
    both = np.concatenate((half[:0:-1], half))
    columns = 1 << max((both.size - 1).bit_length(), 1)
    chance = np.zeros(columns)
    chance[: both.size] = both / math.fsum(both)
    keep, other = _alias(chance * columns)
    scaled = np.minimum(keep, 1 - 2.0**-53) * 2.0**64
    return Skellam(largest, scaled.astype(np.uint64), other)


def reach(variance: float) -> int:
    """Return a value that is exceeded with probability below 2^-70 (by Chernoff's bound)."""

    def exponent(k: int) -> float:
        ratio = k / variance
        return k * math.asinh(ratio) - variance * (math.hypot(1.0, ratio) - 1)

    high = 1
    while exponent(high) < TAIL:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exponent(middle) < TAIL else (low, middle)
    return high


def probabilities(variance: float, largest: int) -> Floats:
    """Return P(0), P(1), ... P(largest), shape (largest + 1,)."""
    ratios = [0.0] * (largest + 1)
    beyond = largest + 64
    ratio = variance / (beyond + math.hypot(beyond, variance))
    for k in range(beyond - 1, 0, -1):
        ratio = 1.0 / (2.0 * k / variance + ratio)
        if k <= largest:
            ratios[k] = ratio
    ratios[0] = 1.0
    relative = np.cumprod(np.array(ratios, np.float64))
    return relative / (2.0 * math.fsum(relative[1:]) + 1.0)


def _alias(heights: Floats) -> tuple[Floats, Integers]:
    """Return what of each column is its own, and whose the rest is; heights have the mean 1."""
    height, other = heights.tolist(), list(range(heights.size))
    low = [i for i, each in enumerate(height) if each < 1.0]
    high = [i for i, each in enumerate(height) if each >= 1.0]
    while low and high:
        short, tall = low.pop(), high[-1]
        other[short] = tall
        height[tall] -= 1.0 - height[short]
        if height[tall] < 1.0:
            low.append(high.pop())
    for left in low:  # by rounding alone; such a column is its own
        height[left] = 1.0
    return np.array(height), np.array(other, np.int64)

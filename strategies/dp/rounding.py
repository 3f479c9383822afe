"""From real vectors to integers that stay within a norm, and whether their sum fits.

    rounded_norm     the L2 norm that no rounded vector exceeds
    rounded          stochastic rounding, drawn again until it holds
    log2_overflow    bound on the probability that a sum wraps

Source: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
Learning with Secure Aggregation", ICML 2021, section 4.1 (conditional rounding, their
beta = exp(-1/2), with which a draw is accepted with probability 0.39 or more).
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.dp.noise import Words

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

DRAWS: Final = 64
"""Of one rounding; after so many (probability 1e-13) it goes towards zero, never too long."""
CHUNK: Final = 1 << 16  # elements


def rounded_norm(reach: float, size: int) -> float:
    """Return the largest L2 norm of a rounded vector.

    Args:
        reach: Largest L2 norm before, in integer units.
        size: Elements of the vector.
    """
    shifted = reach + math.sqrt(size)
    expected = reach**2 + size / 4 + reach + math.sqrt(size) / 2
    return min(shifted, math.sqrt(expected))


def rounded(vector: Floats, largest: float, stream: Words) -> Integers:
    """Return the vector in integers, each the one below or above, unbiased but for `largest`.

    Args:
        vector: Of L2 norm at most `reach`, shape (n,).
        largest: `rounded_norm(reach, n)`.
        stream: Where the draws come from.

    Returns:
        Integers of L2 norm at most `largest`, shape (n,).
    """
    for _ in range(DRAWS):
        found = np.empty(vector.size, np.int64)
        for start in range(0, vector.size, CHUNK):
            part = vector[start : start + CHUNK]
            draws = stream.take(part.size, "<u4") * 2.0**-32
            found[start : start + part.size] = np.floor(part + draws)
        if _norm(found) <= largest:
            return found
    return np.trunc(vector).astype(np.int64)


def _norm(integers: Integers) -> float:
    """Return the L2 norm, never too small: float64 may be off by 2^-53 at every addition."""
    real = integers.astype(np.float64)
    return math.sqrt(float(np.dot(real, real)) * (1 + integers.size * 2.0**-53))


def log2_overflow(
    *, size: int, window: int, reach: float, variance: float, clients: int, bits: int
) -> float:
    """Return a bound on the probability that any element of a sum wraps, as a power of two.

    Each element is a signal that is sub-Gaussian over the rotation's signs, Skellam noise, and
    less than 1 of rounding a client. Chernoff's bound for one, then a union over all of them.

    Args:
        size: Elements of the sum.
        window: Elements that a rotation spreads a vector over.
        reach: Largest L2 norm of one client's vector, in integer units.
        variance: Largest variance of the sum's noise.
        clients: Largest number of clients in the sum.
        bits: Width of a residue.
    """
    room = 2.0 ** (bits - 1) - 1 - clients
    if room <= 0:
        return 0.0
    signal = (clients * reach) ** 2 / window
    rate = _best_rate(room, signal, variance)
    noise = 2.0 * variance * math.sinh(rate / 2) ** 2  # variance * (cosh(rate) - 1)
    exponent = rate**2 * signal / 2 + noise - rate * room
    return min((exponent + math.log(2.0 * size)) / math.log(2), 0.0)


def _best_rate(room: float, signal: float, variance: float) -> float:
    """Return Chernoff's parameter: where rate * signal + variance * sinh(rate) is `room`."""
    low, high = 0.0, min(room / (signal + variance), math.asinh(room / variance))
    for _ in range(60):
        middle = (low + high) / 2
        is_below = middle * signal + variance * math.sinh(middle) < room
        low, high = (middle, high) if is_below else (low, middle)
    return low

"""Random rotations: they spread a vector evenly over its elements, in n log n steps.

    rotate(x) = D2 W2 D1 W1 x      W: Walsh-Hadamard / sqrt(m), after random signs

A vector of 2^k <= n < 2^(k+1) elements is rotated in two windows of m = 2^k elements, the first
and the last, which overlap. So nothing is padded (padding 1.1 million elements to a power of two
would double what travels), every element is mixed, and still

    each element of rotate(x) is sub-Gaussian with variance |x|^2 / m over the random signs,

for any fixed x: within the second window by its signs, given what the first did; before it by
those of the first. `unrotate` is the inverse; both keep the norm.

Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017,
section 3; the two windows are ours.
"""

import math
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.dp.noise import signs

Floats = npt.NDArray[np.float64]

BASE: Final = 32  # elements that one matrix product transforms; short numpy loops would be slower
CHUNK: Final = 1 << 14  # elements; the levels below it run while the chunk is in a core's cache


def window(size: int) -> int:
    """Return the largest power of two that is at most `size`; 0 for 0."""
    return 1 << (size.bit_length() - 1) if size else 0


def rotate(vector: Floats, key: bytes) -> None:
    """Rotate a vector in place.

    Args:
        vector: Contiguous, shape (n,), float64.
        key: 32 bytes that stand for the signs; no secret.
    """
    for part, flips in _windows(vector, key):
        np.multiply(part, flips, out=part)
        _transform(part)


def unrotate(vector: Floats, key: bytes) -> None:
    """Undo `rotate` in place, up to rounding."""
    for part, flips in reversed(_windows(vector, key)):
        _transform(part)
        np.multiply(part, flips, out=part)


def _windows(vector: Floats, key: bytes) -> list[tuple[Floats, Floats]]:
    """Return the windows of a vector, and the signs of each, scaled by 1 / sqrt(m)."""
    length = window(vector.size)
    starts = sorted({0, vector.size - length}) if length else []
    flips = signs(key, length * len(starts)).reshape(len(starts), length)
    flips /= math.sqrt(max(length, 1))
    return [(vector[a : a + length], row) for a, row in zip(starts, flips, strict=True)]


def _transform(values: Floats) -> None:
    """Apply the Walsh-Hadamard matrix in place; the size is a power of two."""
    for start in range(0, values.size, CHUNK):
        part = values[start : start + CHUNK]
        base = min(BASE, part.size)
        rows = part.reshape(-1, base)
        rows[...] = rows @ _matrix(base)
        _butterflies(part, base)
    _butterflies(values, CHUNK)


def _butterflies(values: Floats, first: int) -> None:
    """Add and subtract halves of blocks, from blocks of `first` elements to the whole."""
    step = first
    while step < values.size:
        pairs = values.reshape(-1, 2, step)
        left, right = pairs[:, 0, :], pairs[:, 1, :]
        difference = left - right
        left += right
        right[...] = difference
        step *= 2


@cache
def _matrix(size: int) -> Floats:
    found = np.ones((1, 1))
    while found.shape[0] < size:
        found = np.block([[found, found], [found, -found]])
    return found

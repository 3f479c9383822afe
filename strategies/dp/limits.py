"""Numbers within their range, or an error that names the key, the value and the range."""

import math
from typing import Final

LARGEST_NOISE: Final = 1e6  # a noise multiplier beyond it is a typing error, not privacy
SMALLEST_NOISE: Final = 1e-3  # below it epsilon is in the millions
LARGEST_NORM: Final = 1e9
SMALLEST_NORM: Final = 1e-9
MAX_ROUNDS: Final = 1_000_000
MAX_POPULATION: Final = 10**12


def number(key: str, value: object, low: float, high: float) -> float:
    """Return `value` if it is a finite number within [low, high].

    Raises:
        ValueError: It is not; the message names the key, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, allowed are numbers from {low:g} to {high:g}")
    if not low <= value <= high:
        raise ValueError(f"{key} is {value:g}, allowed is {low:g} to {high:g}")
    return float(value)


def whole(key: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is an integer within [low, high].

    Raises:
        ValueError: It is not; the message names the key, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{key} is {value!r}, allowed are whole numbers from {low} to {high}")
    return value


def noise_multiplier(value: float, key: str = "noise_multiplier") -> float:
    """Return a noise multiplier: standard deviation of the noise over the sensitivity.

    Raises:
        ValueError: Not within [0.001, 1e6].
    """
    return number(key, value, SMALLEST_NOISE, LARGEST_NOISE)


def norm(value: float, key: str = "norm") -> float:
    """Return a clipping norm.

    Raises:
        ValueError: Not within [1e-9, 1e9].
    """
    return number(key, value, SMALLEST_NORM, LARGEST_NORM)

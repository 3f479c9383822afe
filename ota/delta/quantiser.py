"""A release made for its delta: int8 weights that change only where the model does.

Quantising every round's model anew moves each scale a little, and with it many of the integers.
Three rules, each bounded by the fp32 master and not by the release before, so no error adds up:

* A scale *follows* its channel: it is multiplied by the channel's growth, the least-squares ratio
  of master to released weights, and stays as it is while that is within a dead band. New scales
  have a mantissa of 8 bits.
* An integer is *held* while the master is within half a step and `hold` steps of it (hysteresis).
  The rounding error is then at most 0.5 + hold steps of the master, after any number of releases.
* Biases, of 32 bits, move on a grid of up to 16 and are held likewise: as exact as the sum of
  products that they are added to, whose error grows with the root of their number.

`hold` trades bytes for quality; a release line takes the largest that its gates let pass.

Arrays only: `ota.build.followed` applies this to ONNX files.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Master = npt.NDArray[np.float64]
Integers = npt.NDArray[np.signedinteger[Any]]
Scales = npt.NDArray[np.float32]

MANTISSA: Final = 8  # bits of a new scale: 0.2 per cent, and two of its four bytes are always 0
GROWTH: Final = (0.25, 4.0)  # of a channel in one release; beyond it the ratio is an accident
MAX_GRID: Final = 16  # of biases, which have 2**31 values for what 2**15 or so hold well
HOLDS: Final = (0.25, 0.1, 0.05, 0.02, 0.0)
"""What a release line tries, the shortest delta first."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How much of the last release may stay as it is.

    Attributes:
        hold: How much further than half a step an integer may be from the master, in steps.
        dead_band: By how much a channel may grow or shrink with its scale as it is, in octaves.
        slack: How far a bias may be from its integer, in steps of `GRID`.
    """

    hold: float
    dead_band: float = 0.75 * 2.0**-MANTISSA
    slack: float = 1.0


FIRST: Final = Rules(hold=-1.0, dead_band=-1.0, slack=-1.0)
"""Nothing stays: for a release that follows none."""


def rounded(scales: npt.NDArray[Any]) -> Scales:
    """Return scales with a short mantissa.

    Example:
        >>> rounded(np.array([1 / 3])).tolist()
        [0.3330078125]
    """
    mantissas, exponents = np.frexp(scales.astype(np.float64))
    steps = 2.0 ** (MANTISSA + 1)
    short: Scales = np.ldexp(np.rint(mantissas * steps) / steps, exponents).astype(np.float32)
    return short


def followed(
    master: Master,
    released: Integers,
    scales: Scales,
    rules: Rules,
    *,
    limit: int,
    axis: int | None,
) -> Scales:
    """Return the scales of the next release.

    Args:
        master: Weights, any shape.
        released: The release's integers, of that shape, around 0.
        scales: The release's scales, shape (channels,), or (1,) for one of the whole tensor.
        rules: How much may stay as it is.
        limit: Largest integer.
        axis: Of the channels; None for one scale.
    """
    others = tuple(at for at in range(master.ndim) if at != axis)
    dequantised = released * _spread(scales, master.ndim, axis)
    length = (dequantised * dequantised).sum(axis=others).reshape(-1)
    product = (master * dequantised).sum(axis=others).reshape(-1)
    growth = np.clip(product / np.where(length > 0, length, 1.0), *GROWTH)
    wanted = scales * growth
    least = np.abs(master).max(axis=others, initial=0.0).reshape(-1) / (limit + 0.5)
    is_steady = (np.abs(np.log2(growth)) < rules.dead_band) & (scales >= least)
    floor = least * (1 + 2.0**-MANTISSA)  # so that rounding leaves it above the least
    fresh = np.where(length > 0, np.maximum(wanted, floor), floor)
    return np.where(is_steady | (fresh <= 0), scales, rounded(fresh)).astype(np.float32)


def held(
    master: Master,
    released: Integers,
    scales: Scales,
    rules: Rules,
    *,
    bounds: tuple[int, int],
    axis: int | None,
) -> Integers:
    """Return the integers of the next release.

    Args:
        master: Weights, any shape.
        released: The release's integers, of that shape.
        scales: The next release's scales, shape (channels,) or (1,).
        rules: How much may stay as it is.
        bounds: Smallest and largest integer.
        axis: Of the channels; None for one scale.
    """
    exact = master / _spread(scales, master.ndim, axis).astype(np.float64)
    is_near = np.abs(exact - released) <= 0.5 + rules.hold
    found = np.where(is_near, released, np.rint(exact)).clip(*bounds)
    return found.astype(released.dtype)


def held_bias(
    master: Master, released: Integers, scales: Scales, rules: Rules, *, products: float
) -> Integers:
    """Return the bias integers of the next release.

    Args:
        master: Biases, shape (channels,).
        released: The release's integers, of that shape.
        scales: The next release's scales, shape (channels,) or (1,).
        rules: How much may stay as it is.
        products: How many products a bias is added to, at least 1.
    """
    grid = min(MAX_GRID, int(products**0.5))
    exact = master / scales.astype(np.float64)
    is_near = np.abs(exact - released) <= rules.slack * grid
    found = np.where(is_near, released, np.rint(exact / grid) * grid)
    return found.clip(-(2**31), 2**31 - 1).astype(released.dtype)


def _spread(scales: Scales, dimensions: int, axis: int | None) -> Scales:
    """Return scales in a shape that multiplies their tensor."""
    shape = [-1 if at == axis else 1 for at in range(dimensions)]
    return scales.reshape(shape if axis is not None else [1] * dimensions)

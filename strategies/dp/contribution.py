"""What one unit may add to a sum: a vector within a norm, and statistics within bounds.

Statistics (losses, counts) tell about a device as its update does, so they share the budget
instead of leaving in clear. Both become ONE vector of L2 norm at most `radius`

    joint = [ vector clipped to `norm` | amplitude * (statistic - middle) / half-width, ... ]

and a mechanism adds equal noise to every element of it. The statistics take the `share` of the
squared norm: the vector's noise grows by 1 / sqrt(1 - share), and a statistic's noise is
z * sqrt(count / share) half-widths. At 0.02, three statistics and z = 1: 1 % more noise on the
model, and 12 half-widths on a sum over the cohort.

Centring at the middle halves what one unit can change; it needs the number of clients, which the
server knows anyway: it sees who answers. Weights are 1 for the same reason: a weight by the number
of examples would tell that number.

After Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, which
splits the noise between the updates and one count in this way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.dp import limits
from wildflower.strategies.errors import UpdateRefusedError
from wildflower.strategies.guards import check_update

Joint = npt.NDArray[np.float64]
"""Vector and statistics as one, shape (size + len(statistics),)."""

WITHIN: Final = "dp-within"
"""Name of the statistic that is 1 if the update was within the norm before it was clipped."""

SHARE: Final = 0.02
MAX_STATISTICS: Final = 64
MAX_SIZE: Final = 2**28
LARGEST_BOUND: Final = 1e12
FLOAT32_SLACK: Final = 1 - 2.0**-22
"""Rounding to float32 after clipping cannot lead out of the norm again."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest value of a statistic of one unit; what lies outside counts as them."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse bounds that hold nothing."""
        limits.number("low", self.low, -LARGEST_BOUND, LARGEST_BOUND)
        limits.number("high", self.high, -LARGEST_BOUND, LARGEST_BOUND)
        limits.number("high - low", self.high - self.low, 1e-9, 2 * LARGEST_BOUND)

    @property
    def middle(self) -> float:
        """The value that adds nothing."""
        return (self.low + self.high) / 2

    @property
    def half(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2

    def hold(self, value: float) -> float:
        """Return the value, or the bound that it is beyond."""
        return min(max(value, self.low), self.high)


Statistics = tuple[tuple[str, Bounds], ...]
"""The statistics that may leave a device, and their bounds; others stay."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one unit may add to a sum.

    Attributes:
        size: Elements of the model's vector; 0 where only statistics count.
        norm: Largest L2 norm of a vector.
        statistics: Name and bounds of each statistic.
        share: Share of the squared norm that the statistics take.
    """

    size: int
    norm: float
    statistics: Statistics = ()
    share: float = SHARE

    def __post_init__(self) -> None:
        """Refuse what cannot be bounded."""
        limits.whole("size", self.size, 0, MAX_SIZE)
        limits.norm(self.norm)
        limits.number("share", self.share, 1e-4, 0.5)
        require_names([name for name, _ in self.statistics])

    @property
    def length(self) -> int:
        """Elements of the joint vector."""
        return self.size + len(self.statistics)

    @property
    def radius(self) -> float:
        """Largest L2 norm of a joint vector."""
        is_shared = self.size and self.statistics
        return self.norm / math.sqrt(1 - self.share) if is_shared else self.norm

    @property
    def amplitude(self) -> float:
        """Largest value of a statistic's element in the joint vector."""
        share = self.share if self.size else 1.0
        return self.radius * math.sqrt(share / max(len(self.statistics), 1))

    def sensitivity(self, quantum: float = 0.0, statistic_quantum: float = 0.0) -> float:
        """Return the largest L2 norm of what one unit adds after it was rounded to a grid.

        Args:
            quantum: Largest rounding of an element of the vector, as `fixed_point.Encoding.quantum`
                says: with 16-bit residues it is far from nothing.
            statistic_quantum: Largest rounding of a statistic.
        """
        per_unit = sum(self.amplitude / bounds.half for _, bounds in self.statistics)
        return self.radius + math.sqrt(self.size) * quantum + per_unit * statistic_quantum

    def clip(self, update: Update) -> Update:
        """Return the update within its bounds: norm, weight 1, named statistics.

        Raises:
            UpdateRefusedError: Not finite, of another shape, or a statistic is missing.
        """
        check_update(update, self.size, evaluate_only=True)
        scale = _scale(update.vector, self.norm) * FLOAT32_SLACK
        vector = update.vector
        if scale < FLOAT32_SLACK:
            vector = (vector * scale).astype(np.float32)
        return Update(vector, 1.0, self._held(update.statistics))

    def join(self, update: Update) -> Joint:
        """Return what the update adds, of L2 norm at most `radius`, shape (length,).

        Raises:
            UpdateRefusedError: Not finite, of another shape, or a statistic is missing.
        """
        check_update(update, self.size, evaluate_only=True)
        held = self._held(update.statistics)
        joint = np.empty(self.length, np.float64)
        joint[: self.size] = update.vector
        joint[: self.size] *= _scale(update.vector, self.norm)
        joint[self.size :] = [
            self.amplitude * (held[name] - bounds.middle) / bounds.half
            for name, bounds in self.statistics
        ]
        return joint

    def join_sum(self, total: Sum) -> Joint:
        """Return the sum of what the updates in `total` added, shape (length,).

        Raises:
            UpdateRefusedError: The sum is of another size, or lacks a statistic.
        """
        if total.vector.shape != (self.size,):
            raise UpdateRefusedError(
                f"the sum has shape {total.vector.shape}, expected {self.size} elements"
            )
        self._require(total.statistics)
        tail = [
            self.amplitude * (total.statistics[name] - total.clients * bounds.middle) / bounds.half
            for name, bounds in self.statistics
        ]
        return np.concatenate((total.vector, np.array(tail, np.float64)))

    def split(self, joint: Joint, clients: int) -> Sum:
        """Return the sum whose joint form is given; its weight is the number of clients."""
        statistics = {
            name: float(clients * bounds.middle + bounds.half * value / self.amplitude)
            for (name, bounds), value in zip(self.statistics, joint[self.size :], strict=True)
        }
        weight = float(clients) if self.size else 0.0
        return Sum(joint[: self.size].copy(), weight, statistics, clients)

    def _held(self, found: Mapping[str, float]) -> dict[str, float]:
        self._require(found)
        return {name: bounds.hold(found[name]) for name, bounds in self.statistics}

    def _require(self, found: Mapping[str, float]) -> None:
        missing = [name for name, _ in self.statistics if name not in found]
        if missing:
            raise UpdateRefusedError(f"statistics {missing} are missing, found {sorted(found)}")


def is_within(update: Update, norm: float) -> bool:
    """Tell whether an update needs no clipping."""
    return _scale(update.vector, norm) == 1.0


def _scale(vector: npt.NDArray[np.float32], norm: float) -> float:
    """Return by what a vector is multiplied to be within the norm; at most 1."""
    found = math.sqrt(float(np.einsum("i,i->", vector, vector, dtype=np.float64)))
    return 1.0 if found <= norm else norm / found


def require_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be told apart or written down.

    Raises:
        ValueError: Too many, one twice, an empty or overlong one, or one with "=", ":" or ";".
    """
    if len(names) > MAX_STATISTICS or len(set(names)) != len(names):
        raise ValueError(f"statistics must be at most {MAX_STATISTICS} distinct names: {names}")
    if not all(1 <= len(name) <= 64 and not set(name) & set("=:;") for name in names):
        raise ValueError(f"a statistic's name is 1 to 64 characters but '=', ':', ';': {names}")


def statistics_text(statistics: Statistics) -> str:
    """Return bounds as one text, `parse_statistics(statistics_text(s)) == s`.

    One text, because an empty list does not survive every transport.

    Example:
        >>> statistics_text((("loss", Bounds(0.0, 8.0)),))
        'loss=0.0:8.0'
    """
    return ";".join(f"{name}={each.low!r}:{each.high!r}" for name, each in statistics)


def parse_statistics(text: str) -> Statistics:
    """Parse what `statistics_text` wrote.

    Raises:
        ValueError: Not bounds of statistics.
    """
    if len(text) > MAX_STATISTICS * 128:
        raise ValueError(f"statistics are {len(text)} characters, at most {MAX_STATISTICS * 128}")
    found = []
    for item in (item for item in text.split(";") if item):
        name, _, pair = item.partition("=")
        low, _, high = pair.partition(":")
        found.append((name, Bounds(float(low), float(high))))
    require_names([name for name, _ in found])
    return tuple(found)

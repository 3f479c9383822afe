"""Updates as residues modulo 2**32, so that they can be masked and still add up exactly.

    residues = [ weight/max_weight * clip(vector) | weight | clipped elements | statistics ]
                 size                               1        1                  len(statistics)

Each is a two's-complement fixed-point number whose quantum is fixed by the `Encoding`, which all
clients of a cohort share. The weight is applied before quantisation, so the sum is the weighted
sum; how many elements the clipping touched is added up too, because clipping in silence spoils
models unnoticed. Rounding of the vector is stochastic: its error has mean 0 and shrinks with the
cohort.

    decode(sum of encodes mod 2**32) is the plain fixed-point sum, bit for bit, and is within
    one quantum per client of the true sum. Nothing wraps: clients * (levels + 1) < 2**31.

Weights above `max_weight` count as `max_weight`: a bound on what one client can do to the mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.guards import check_update

Residues = npt.NDArray[np.uint32]
"""Integers modulo 2**32, shape (length,)."""

CLIPPED: Final = "clipped"
"""Name of the statistic that counts elements beyond the clipping bound."""

LARGEST: Final = 2**31 - 1
"""A sum must not leave the positive half of the residues."""

MAX_SIZE: Final = 2**28  # elements, 1 GiB of residues
MAX_CLIENTS: Final = 10_000
MAX_STATISTICS: Final = 64
CHUNK: Final = 1 << 15  # elements; three float64 buffers of a chunk stay in a core's cache

Field = str | int | float
"""What a configuration record of Flower can carry."""

_TYPES: Final = {"size": int, "clip": float, "max_weight": float, "clients": int, "statistics": str}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the updates of one cohort become residues.

    Attributes:
        size: Elements of the model's vector, may be 0.
        clip: Largest absolute value of an element that enters the sum.
        max_weight: Largest weight of one client.
        clients: Upper bound of the cohort's size.
        statistics: Name and quantum of each statistic, in the order of the residues.
    """

    size: int
    clip: float
    max_weight: float
    clients: int
    statistics: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be encoded."""
        names = [name for name, _ in self.statistics]
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}, allowed are 0 to {MAX_SIZE} elements")
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise ValueError(f"clients is {self.clients}, allowed are 1 to {MAX_CLIENTS}")
        for quantity in (self.clip, self.max_weight, *(quantum for _, quantum in self.statistics)):
            if not 1e-12 <= quantity <= 1e12:
                raise ValueError(f"bounds and quanta lie within 1e-12 and 1e12, found {quantity}")
        if len(names) > MAX_STATISTICS or len(set(names) | {CLIPPED}) != len(names) + 1:
            raise ValueError(f"statistics must be at most {MAX_STATISTICS} distinct names: {names}")
        if not all(_is_name(name) for name in names):
            raise ValueError(f"a statistic's name is 1 to 64 characters but '=' and ';': {names}")
        if self.max_weight > self.levels:
            raise CapacityError(
                f"{self.clients} clients of weight up to {self.max_weight:g} do not fit into"
                f" 32-bit residues: with so many, one may weigh at most {self.levels}",
                hint="Lower the largest weight, or the size of the cohort.",
            )

    @classmethod
    def for_cohort(
        cls,
        *,
        size: int,
        clip: float,
        max_weight: float,
        clients: int,
        statistics: Sequence[str] = (),
        largest_statistic: float | None = None,
    ) -> Self:
        """Return the finest encoding for a cohort.

        Args:
            size: Elements of the model's vector.
            clip: Largest absolute value of an element.
            max_weight: Largest weight of one client.
            clients: Upper bound of the cohort's size.
            statistics: Names of the statistics.
            largest_statistic: Largest absolute value of a statistic of one client; by default
                16 times `max_weight`, as for a loss of 16 for each example.

        Raises:
            CapacityError: The cohort's sums do not fit into the residues.
        """
        largest = 16 * max_weight if largest_statistic is None else largest_statistic
        quantum = _quantum(largest, _levels(clients))
        return cls(size, clip, max_weight, clients, tuple((name, quantum) for name in statistics))

    @property
    def length(self) -> int:
        """Number of residues of one encoded update."""
        return self.size + 2 + len(self.statistics)

    @property
    def levels(self) -> int:
        """Largest integer that one client may contribute to one element of the vector."""
        return _levels(self.clients)

    @property
    def quantum(self) -> float:
        """Quantum of an element of the weighted sum."""
        return self.max_weight * self.clip / self.levels

    @property
    def weight_quantum(self) -> float:
        """Quantum of the weight: a power of two, at most 1, so that counts are exact."""
        return _quantum(self.max_weight, self.levels)

    @property
    def clipped_quantum(self) -> int:
        """Quantum of the count of clipped elements: 1 unless the model is enormous."""
        return max(1, int(_quantum(max(self.size, 1), self.levels)))

    def encode(self, update: Update, rng: np.random.Generator) -> Residues:
        """Return the residues of an update, shape (length,).

        Args:
            update: What the client adds; statistics that the encoding does not name stay behind.
            rng: Source of the stochastic rounding; no secret.

        Raises:
            UpdateRefusedError: Not finite, or of another shape.
            CapacityError: A statistic is missing or beyond what the encoding can carry.
        """
        check_update(update, self.size, evaluate_only=True)
        weight = min(update.weight, self.max_weight)
        residues = np.empty(self.length, np.uint32)
        clipped = self._encode_vector(update.vector, weight / self.max_weight, rng, residues)
        tail = [round(weight / self.weight_quantum), -(-clipped // self.clipped_quantum)]
        tail += [self._encode_statistic(name, q, update.statistics) for name, q in self.statistics]
        residues[self.size :] = np.array(tail, np.int64).astype(np.uint32)
        return residues

    def _encode_vector(
        self, vector: npt.NDArray[np.float32], share: float, rng: np.random.Generator, out: Residues
    ) -> int:
        """Write the residues of the vector into `out`; return how many elements were clipped."""
        scale, clipped = self.levels / self.clip * share, 0
        for start in range(0, self.size, CHUNK):
            part = vector[start : start + CHUNK].astype(np.float64)
            bounded = np.clip(part, -self.clip, self.clip)
            clipped += int(np.count_nonzero(bounded != part))
            bounded *= scale
            bounded += rng.random(part.size, dtype=np.float32)
            np.floor(bounded, out=bounded)
            out[start : start + part.size] = bounded.astype(np.int32).view(np.uint32)
        return clipped

    def _encode_statistic(self, name: str, quantum: float, found: Mapping[str, float]) -> int:
        if name not in found:
            raise CapacityError(f"the update lacks the statistic {name!r}, found {sorted(found)}")
        level = round(found[name] / quantum)
        if abs(level) > self.levels:
            raise CapacityError(
                f"{name} is {found[name]:g}, one client of {self.clients} may add at most"
                f" {self.levels * quantum:g}"
            )
        return level

    def decode(self, total: Residues, clients: int) -> Sum:
        """Return what the residues of `clients` updates add up to.

        Args:
            total: Sum of encoded updates modulo 2**32, shape (length,).
            clients: How many updates are in it.

        Returns:
            The sum; its statistics hold the named ones and `CLIPPED`.

        Raises:
            ProtocolError: No sum of that many encoded updates.
        """
        if total.shape != (self.length,) or total.dtype != np.uint32:
            raise ProtocolError(
                f"expected {self.length} residues, found {total.dtype} of shape {total.shape}"
            )
        signed = total.view(np.int32)
        weight = float(signed[self.size]) * self.weight_quantum
        clipped = float(signed[self.size + 1]) * self.clipped_quantum
        if not 1 <= clients <= self.clients or not 0 <= weight <= clients * self.max_weight:
            raise ProtocolError(
                f"a weight of {weight:g} is no sum of {clients} updates"
                f" of at most {self.max_weight:g}, from at most {self.clients} clients"
            )
        tail = signed[self.size + 2 :].tolist()
        statistics = {
            name: level * quantum
            for (name, quantum), level in zip(self.statistics, tail, strict=True)
        }
        vector = signed[: self.size].astype(np.float64) * self.quantum
        return Sum(vector, weight, {**statistics, CLIPPED: clipped}, clients)

    def to_fields(self) -> dict[str, Field]:
        """Return the stored form; `from_fields(to_fields(e)) == e`.

        Names and quanta are one text, because an empty list does not survive every transport.
        """
        return {
            "size": self.size,
            "clip": float(self.clip),
            "max_weight": float(self.max_weight),
            "clients": self.clients,
            "statistics": ";".join(f"{name}={float(q)!r}" for name, q in self.statistics),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: Not an encoding.
            CapacityError: One whose sums do not fit.
        """
        wrong = [key for key, kind in _TYPES.items() if type(fields.get(key)) is not kind]
        if wrong or set(fields) != set(_TYPES):
            raise ProtocolError(f"not an encoding: fields {sorted(fields)}, wrong are {wrong}")
        values: dict[str, object] = dict(fields)
        try:
            pairs = [item.split("=") for item in str(fields["statistics"]).split(";") if item]
            values["statistics"] = tuple((name, float(quantum)) for name, quantum in pairs)
            return cls(**values)  # type: ignore[arg-type]  # the types were compared above
        except ValueError as error:
            raise ProtocolError(f"not an encoding: {error}") from error


def _is_name(name: str) -> bool:
    return 1 <= len(name) <= 64 and not set(name) & set("=;")


def _levels(clients: int) -> int:
    """Return what one client may add; one more would still fit, should a product round up."""
    return LARGEST // clients - 1


def _quantum(largest: float, levels: int) -> float:
    """Return the smallest power of two of which `levels` reach `largest`."""
    return 2.0 ** math.ceil(math.log2(largest / levels))

"""Updates as residues modulo 2**bits, so that they can be masked and still add up exactly.

    residues = [ weight/max_weight * clip(vector) | weight | clipped elements | statistics ]
                 size                               digits   digits             digits each

Each is a two's-complement fixed-point number whose quantum is fixed by the `Encoding`, which all
clients of a cohort share. The weight is applied before quantisation, so the sum is the weighted
sum; how many elements the clipping touched is added up too, because clipping in silence spoils
models unnoticed. Rounding of the vector is stochastic: its error has mean 0 and shrinks with the
cohort.

    decode(sum of encodes mod 2**bits) is the plain fixed-point sum, bit for bit, and is within
    one quantum per client of the true sum. Nothing wraps: clients * (levels + 1) < 2**(bits - 1).

32 bits are one digit. 16 bits halve what travels: an element of the vector then has some hundred
levels in a cohort of a hundred, which stochastic rounding makes up for, while the weight and the
statistics, which must be exact, are written in as many digits as 32 bits would hold.

Weights above `max_weight` count as `max_weight`: a bound on what one client can do to the mean.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.guards import check_update
from wildflower.strategies.keystream import CHUNK, Keystream, scratch

Residues = npt.NDArray[np.unsignedinteger[Any]]
"""Integers modulo 2**bits, shape (length,)."""

CLIPPED: Final = "clipped"
"""Name of the statistic that counts elements beyond the clipping bound."""

BITS: Final = (16, 32)
"""How wide a residue may be."""

FEWEST_LEVELS: Final = 7
"""With fewer, an update is mostly rounding; 16 bits end at a cohort of 4,095."""

MAX_SIZE: Final = 2**28  # elements, 1 GiB of residues
MAX_CLIENTS: Final = 10_000
MAX_STATISTICS: Final = 64
COUNT_BITS: Final = 32
"""Bits that weights, counts and statistics add up in, whatever the residues' width."""
STEP: Final = CHUNK // 4  # elements at once: four random bytes round one of them

Field = str | int | float
"""What a configuration record of Flower can carry."""

KIND: Final = "fixed-point"
_NUMBERS: Final = {"size": int, "clip": float, "max_weight": float, "clients": int, "bits": int}
_TYPES: Final = {**_NUMBERS, "statistics": str, "encoding": str}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the updates of one cohort become residues.

    Attributes:
        size: Elements of the model's vector, may be 0.
        clip: Largest absolute value of an element that enters the sum.
        max_weight: Largest weight of one client.
        clients: Upper bound of the cohort's size.
        statistics: Name and quantum of each statistic, in the order of the residues.
        bits: Width of a residue, 16 or 32.
    """

    size: int
    clip: float
    max_weight: float
    clients: int
    statistics: tuple[tuple[str, float], ...] = ()
    bits: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be encoded."""
        names = [name for name, _ in self.statistics]
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}, allowed are 0 to {MAX_SIZE} elements")
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise ValueError(f"clients is {self.clients}, allowed are 1 to {MAX_CLIENTS}")
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits}, allowed are {BITS}")
        for quantity in (self.clip, self.max_weight, *(quantum for _, quantum in self.statistics)):
            if not 1e-12 <= quantity <= 1e12:
                raise ValueError(f"bounds and quanta lie within 1e-12 and 1e12, found {quantity}")
        if len(names) > MAX_STATISTICS or len(set(names) | {CLIPPED}) != len(names) + 1:
            raise ValueError(f"statistics must be at most {MAX_STATISTICS} distinct names: {names}")
        if not all(_is_name(name) for name in names):
            raise ValueError(f"a statistic's name is 1 to 64 characters but '=' and ';': {names}")
        if self.max_weight > self.count_levels:
            raise CapacityError(
                f"{self.clients} clients of weight up to {self.max_weight:g} do not fit into"
                f" a sum: with so many, one may weigh at most {self.count_levels}",
                hint="Lower the largest weight, or the size of the cohort.",
            )
        if self.levels < FEWEST_LEVELS:
            raise CapacityError(
                f"{self.clients} clients leave {self.levels} levels to each in {self.bits}-bit"
                f" residues, {FEWEST_LEVELS} are needed",
                hint="Use 32-bit residues, or a smaller cohort.",
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
        bits: int = 32,
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
            bits: Width of a residue, 16 or 32.

        Raises:
            CapacityError: The cohort's sums do not fit into the residues.
        """
        largest = 16 * max_weight if largest_statistic is None else largest_statistic
        quantum = _quantum(largest, _levels(clients, COUNT_BITS))
        named = tuple((name, quantum) for name in statistics)
        return cls(size, clip, max_weight, clients, named, bits)

    @property
    def min_cohort(self) -> int:
        """Fewest updates in a sum: one, for there is no noise."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return tuple(name for name, _ in self.statistics)

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """Type of a residue: uint16 or uint32."""
        return np.dtype(f"u{self.bits // 8}")

    @property
    def length(self) -> int:
        """Number of residues of one encoded update."""
        return self.size + self.digits * (2 + len(self.statistics))

    @property
    def levels(self) -> int:
        """Largest integer that one client may contribute to one element of the vector."""
        return _levels(self.clients, self.bits)

    @property
    def count_levels(self) -> int:
        """Largest integer that one client may contribute as a weight, a count or a statistic."""
        return _levels(self.clients, COUNT_BITS)

    @property
    def digits(self) -> int:
        """Residues that hold one weight, count or statistic, the lowest digit first."""
        return 1 if self.bits == COUNT_BITS else -(-self.count_levels.bit_length() // self.digit)

    @property
    def digit(self) -> int:
        """Bits of one digit: as many as all clients' digits can add up in."""
        return (self.levels + 1).bit_length() - 1

    @property
    def quantum(self) -> float:
        """Quantum of an element of the weighted sum."""
        return self.max_weight * self.clip / self.levels

    @property
    def weight_quantum(self) -> float:
        """Quantum of the weight: a power of two, at most 1, so that counts are exact."""
        return _quantum(self.max_weight, self.count_levels)

    @property
    def clipped_quantum(self) -> int:
        """Quantum of the count of clipped elements: 1 unless the model is enormous."""
        return max(1, int(_quantum(max(self.size, 1), self.count_levels)))

    def encode(self, update: Update, entropy: bytes) -> Residues:
        """Return the residues of an update, shape (length,).

        Args:
            update: What the client adds; statistics that the encoding does not name stay behind.
            entropy: Decides the stochastic rounding, for this call only.

        Raises:
            UpdateRefusedError: Not finite, or of another shape.
            CapacityError: A statistic is missing or beyond what the encoding can carry.
        """
        check_update(update, self.size, evaluate_only=True)
        weight = min(update.weight, self.max_weight)
        residues = np.empty(self.length, self.dtype)
        stream = Keystream(hashlib.sha256(b"wildflower/fixed-point/1/" + entropy).digest())
        clipped = self._encode_vector(update.vector, weight / self.max_weight, stream, residues)
        tail = [round(weight / self.weight_quantum), -(-clipped // self.clipped_quantum)]
        tail += [self._encode_statistic(name, q, update.statistics) for name, q in self.statistics]
        residues[self.size :] = self._spread(np.array(tail, np.int64)).astype(self.dtype)
        return residues

    def _spread(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the digits of integers, each with its integer's sign, the lowest first."""
        if self.digits == 1:
            return counts
        shifts = np.arange(self.digits) * self.digit
        parts = (np.abs(counts)[:, None] >> shifts) & ((1 << self.digit) - 1)
        spread: npt.NDArray[np.int64] = (np.sign(counts)[:, None] * parts).reshape(-1)
        return spread

    def _gather(self, digits: npt.NDArray[np.int64]) -> list[int]:
        """Return the integers whose digits, or sums of digits, are given."""
        places = 1 << (np.arange(self.digits) * (self.digit if self.digits > 1 else 0))
        return [int(total) for total in (digits.reshape(-1, self.digits) * places).sum(axis=1)]

    def _encode_vector(
        self, vector: npt.NDArray[np.float32], share: float, stream: Keystream, out: Residues
    ) -> int:
        """Write the residues of the vector into `out`; return how many elements were clipped."""
        scale, clipped = self.levels / self.clip * share, 0
        buffer, levels, dice = scratch(), np.empty(STEP), np.empty(STEP)
        words, signed = buffer[:CHUNK].view("<u4"), out.view(self._signed)
        for start in range(0, self.size, STEP):
            part = vector[start : start + STEP]
            level, rounding = levels[: part.size], dice[: part.size]
            np.copyto(level, part)
            if float(part.max()) > self.clip or float(part.min()) < -self.clip:
                clipped += int(np.count_nonzero(np.abs(level) > self.clip))
                np.clip(level, -self.clip, self.clip, out=level)
            stream.fill(buffer, 4 * part.size)
            np.multiply(words[: part.size], 2.0**-32, out=rounding)
            level *= scale
            level += rounding
            np.floor(level, out=level)
            np.copyto(signed[start : start + part.size], level, casting="unsafe")
        return clipped

    def _encode_statistic(self, name: str, quantum: float, found: Mapping[str, float]) -> int:
        if name not in found:
            raise CapacityError(f"the update lacks the statistic {name!r}, found {sorted(found)}")
        level = round(found[name] / quantum)
        if abs(level) > self.count_levels:
            raise CapacityError(
                f"{name} is {found[name]:g}, one client of {self.clients} may add at most"
                f" {self.count_levels * quantum:g}"
            )
        return level

    def decode(self, total: Residues, clients: int) -> Sum:
        """Return what the residues of `clients` updates add up to.

        Args:
            total: Sum of encoded updates modulo 2**bits, shape (length,).
            clients: How many updates are in it.

        Returns:
            The sum; its statistics hold the named ones and `CLIPPED`.

        Raises:
            ProtocolError: No sum of that many encoded updates.
        """
        if total.shape != (self.length,) or total.dtype != self.dtype:
            raise ProtocolError(
                f"expected {self.length} residues, found {total.dtype} of shape {total.shape}"
            )
        signed = total.view(self._signed)
        counts = self._gather(signed[self.size :].astype(np.int64))
        weight, clipped = counts[0] * self.weight_quantum, float(counts[1] * self.clipped_quantum)
        if not 1 <= clients <= self.clients or not 0 <= weight <= clients * self.max_weight:
            raise ProtocolError(
                f"a weight of {weight:g} is no sum of {clients} updates"
                f" of at most {self.max_weight:g}, from at most {self.clients} clients"
            )
        statistics = {
            name: level * quantum
            for (name, quantum), level in zip(self.statistics, counts[2:], strict=True)
        }
        vector = signed[: self.size].astype(np.float64) * self.quantum
        return Sum(vector, weight, {**statistics, CLIPPED: clipped}, clients)

    @property
    def _signed(self) -> "np.dtype[np.signedinteger[Any]]":
        return np.dtype(f"i{self.bits // 8}")

    def to_fields(self) -> dict[str, Field]:
        """Return the stored form; `from_fields(to_fields(e)) == e`.

        Names and quanta are one text, because an empty list does not survive every transport.
        """
        return {
            "encoding": KIND,
            "bits": self.bits,
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
        if values.pop("encoding") != KIND:
            raise ProtocolError(f"not an encoding: {KIND} expected, found {fields['encoding']!r}")
        try:
            pairs = [item.split("=") for item in str(fields["statistics"]).split(";") if item]
            values["statistics"] = tuple((name, float(quantum)) for name, quantum in pairs)
            return cls(**values)  # type: ignore[arg-type]  # the types were compared above
        except ValueError as error:
            raise ProtocolError(f"not an encoding: {error}") from error


def _is_name(name: str) -> bool:
    return 1 <= len(name) <= 64 and not set(name) & set("=;")


def _levels(clients: int, bits: int) -> int:
    """Return what one client may add: a sum stays in the positive half of the residues.

    One more would still fit, should a product round up.
    """
    largest: int = 2 ** (bits - 1) - 1
    return largest // clients - 1


def _quantum(largest: float, levels: int) -> float:
    """Return the smallest power of two of which `levels` reach `largest`."""
    return 2.0 ** math.ceil(math.log2(largest / levels))

"""Distributed differential privacy: each device adds a part of the noise, inside the secure sum.

    joint = [clipped vector | statistics]     L2 norm at most `radius`, see `contribution`
    q     = round(scale * rotate(joint))      integers, L2 norm at most `l2`, see below
    sent  = (q + Skellam) mod 2**bits         masked by secure aggregation as any other residues

The server sees the sum only, and the sum is already private: the noise of `min_cohort` devices has
the variance (z l2)^2 on every element. No one is trusted to add it later. With more survivors there
is more noise, and `event` accounts what there was; a device that lies about its noise, or tells it
to the server, takes its part away from the others, so leave room in `min_cohort` for such devices.

Rounding is stochastic, and drawn again until the integers are within `l2` (`rounding`): whatever
the draw and whatever the update, no contribution is longer.

A residue must not wrap. The rotation makes each element of the sum sub-Gaussian for every update,
so the probability that any element of the sum wraps is at most 2^-40, by Chernoff's bound
(`overflow`), as long as no device cheats; parameters beyond that are refused.

Elements all have one scale and one noise, statistics included: there is no exact tail, because an
exact count would not be private. Sums are over devices of weight 1.

Source: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated
Learning", NeurIPS 2021; Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation", ICML 2021.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.dp import limits
from wildflower.strategies.dp.contribution import (
    SHARE,
    Contribution,
    Statistics,
    parse_statistics,
    statistics_text,
)
from wildflower.strategies.dp.events import EVERYONE, Sampling, Skellam
from wildflower.strategies.dp.hadamard import rotate, unrotate, window
from wildflower.strategies.dp.noise import Words, derive
from wildflower.strategies.dp.rounding import log2_overflow, rounded, rounded_norm
from wildflower.strategies.dp.skellam import LARGEST, SMALLEST, skellam
from wildflower.strategies.errors import CapacityError, ProtocolError, UpdateRefusedError
from wildflower.strategies.fixed_point import BITS, MAX_CLIENTS, Field, Residues

KIND: Final = "skellam"
OVERFLOW: Final = -40.0
"""Largest probability that a sum wraps, as a power of two."""
LARGEST_INFLATION: Final = 1.5
"""Beyond it, rounding to so few levels costs more noise than wider residues cost bytes."""
FINENESS: Final = 1.001
"""The finest scale is found to 0.1 %."""
_ROTATION: Final = re.compile("[0-9a-f]{32}")
_TYPES: Final[Mapping[str, type]] = {
    **{"encoding": str, "bits": int, "size": int, "norm": float, "noise_multiplier": float},
    **{"clients": int, "min_cohort": int, "scale": float, "rotation": str},
    **{"statistics": str, "share": float},
}


@dataclass(frozen=True, slots=True)
class SkellamEncoding:
    """How the updates of one cohort become noisy residues; offers what `Encoding` offers.

    Attributes:
        size: Elements of the model's vector, may be 0.
        norm: Largest L2 norm of an update.
        noise_multiplier: Standard deviation of the noise of `min_cohort` devices over `l2`.
        clients: Upper bound of the cohort's size.
        min_cohort: Fewest devices in a sum; the noise is sized for them.
        scale: Integer units in 1.
        rotation: What the rotation's signs are made from, 16 bytes, hex; no secret.
        statistics: Name and bounds of each statistic.
        share: Share of the squared norm that the statistics take.
        bits: Width of a residue, 16 or 32.
    """

    size: int
    norm: float
    noise_multiplier: float
    clients: int
    min_cohort: int
    scale: float
    rotation: str
    statistics: Statistics = ()
    share: float = SHARE
    bits: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be encoded, would wrap, or could not be drawn."""
        limits.whole("size + statistics", self.contribution.length, 1, 2**29)
        limits.noise_multiplier(self.noise_multiplier)
        limits.whole("clients", self.clients, 1, MAX_CLIENTS)
        limits.whole("min_cohort", self.min_cohort, 1, self.clients)
        limits.number("scale", self.scale, 1e-12, 1e15)
        if self.bits not in BITS or isinstance(self.bits, bool):
            raise ValueError(f"bits is {self.bits}, allowed are {BITS}")
        if not _ROTATION.fullmatch(self.rotation):
            raise ValueError(f"rotation is 16 bytes in hex, found {self.rotation!r:.80}")
        self._require_fit()

    def _require_fit(self) -> None:
        if self.overflow > OVERFLOW:
            raise CapacityError(
                f"the sum of {self.clients} updates wraps {self.bits}-bit residues with"
                f" probability up to 2^{self.overflow:.1f}, allowed is 2^{OVERFLOW:g}",
                hint="Use 32-bit residues, or a smaller cohort.",
            )
        if not SMALLEST <= self.client_variance <= LARGEST:
            raise CapacityError(
                f"one device's noise has the variance {self.client_variance:g}, it can be drawn"
                f" from {SMALLEST:g} to {LARGEST:g}",
                hint="Lower the noise multiplier, or raise min_cohort.",
            )
        if self.inflation > LARGEST_INFLATION:
            raise CapacityError(
                f"rounding {self.length} elements at scale {self.scale:g} lengthens an update"
                f" {self.inflation:.2f} times, allowed is {LARGEST_INFLATION:g}",
                hint="Use 32-bit residues, a smaller cohort, or a smaller model.",
            )

    @classmethod
    def for_cohort(
        cls,
        contribution: Contribution,
        *,
        noise_multiplier: float,
        clients: int,
        min_cohort: int,
        rotation: bytes,
        bits: int = 16,
    ) -> Self:
        """Return the finest encoding for a cohort.

        Args:
            contribution: What one device may add.
            noise_multiplier: Standard deviation of the sum's noise over the sensitivity.
            clients: Upper bound of the cohort's size.
            min_cohort: Fewest devices in a sum.
            rotation: 16 random bytes, new in every round; no secret.
            bits: Width of a residue, 16 or 32.

        Raises:
            ValueError: A parameter beyond its range.
            CapacityError: The cohort's sums do not fit into the residues.
        """

        def at(scale: float) -> _Load:
            return _Load(contribution, noise_multiplier, clients, min_cohort, bits, scale)

        limits.whole("size + statistics", contribution.length, 1, 2**29)
        limits.whole("min_cohort", min_cohort, 1, limits.whole("clients", clients, 1, MAX_CLIENTS))
        limits.noise_multiplier(noise_multiplier)
        low, high = 1 / contribution.radius, 2.0**40 / contribution.radius
        while high / low > FINENESS:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if at(middle).fits else (low, middle)
        return cls(
            size=contribution.size,
            norm=contribution.norm,
            noise_multiplier=noise_multiplier,
            clients=clients,
            min_cohort=min_cohort,
            scale=low,
            rotation=rotation.hex(),
            statistics=contribution.statistics,
            share=contribution.share,
            bits=bits,
        )

    @property
    def contribution(self) -> Contribution:
        """What one device may add."""
        return Contribution(self.size, self.norm, self.statistics, self.share)

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """Type of a residue: uint16 or uint32."""
        return np.dtype(f"u{self.bits // 8}")

    @property
    def length(self) -> int:
        """Number of residues of one encoded update."""
        return self.contribution.length

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics that are added up."""
        return tuple(name for name, _ in self.statistics)

    @property
    def l2(self) -> float:
        """Largest L2 norm of one device's integers."""
        return self._load.l2

    @property
    def l1(self) -> float:
        """Largest L1 norm of one device's integers: none is larger than its own square."""
        return min(math.sqrt(self.length) * self.l2, self.l2**2)

    @property
    def inflation(self) -> float:
        """How much longer rounding may make an update, and so how much more noise it costs."""
        return self.l2 / (self.scale * self.contribution.radius)

    @property
    def client_variance(self) -> float:
        """Variance of one device's noise on one element, in squared integer units."""
        return self._load.client_variance

    @property
    def overflow(self) -> float:
        """Bound on the probability that any element of the sum wraps, as a power of two."""
        return self._load.overflow

    @property
    def _load(self) -> "_Load":
        numbers = (self.noise_multiplier, self.clients, self.min_cohort, self.bits, self.scale)
        return _Load(self.contribution, *numbers)

    def event(self, survivors: int, sampling: Sampling = EVERYONE) -> Skellam:
        """Return what the sum of that many devices is accounted as.

        Args:
            survivors: Devices whose noise is in the sum. Leave out those that might tell theirs.
            sampling: How the cohort was drawn; against the server that drew it, `EVERYONE`.

        Raises:
            ValueError: Not within 1 and `clients`.
        """
        limits.whole("survivors", survivors, 1, self.clients)
        noise = self.noise_multiplier * math.sqrt(survivors / self.min_cohort)
        return Skellam(noise, self.l2, self.l1, 1, sampling)

    def encode(self, update: Update, entropy: bytes) -> Residues:
        """Return the noisy residues of an update, shape (length,).

        Args:
            update: What the client adds; statistics that the encoding does not name stay behind.
            entropy: 32 or more secret random bytes, for this call only: whoever learns them can
                take this device's noise off again.

        Raises:
            UpdateRefusedError: Not finite, of another shape, of a weight other than 1, or it
                lacks a statistic.
            ValueError: Fewer than 32 bytes of entropy.
        """
        integers = self.integers(update, entropy)
        stream = Words(derive(entropy, b"skellam"))
        integers += skellam(self.client_variance).draw(stream, self.length)
        return integers.astype(self.dtype)

    def integers(self, update: Update, entropy: bytes) -> npt.NDArray[np.int64]:
        """Return what is added before the noise, of L2 norm at most `l2`, shape (length,).

        Never to be sent: it is `encode` without its noise, for tests of the bound.

        Raises:
            UpdateRefusedError: As for `encode`.
            ValueError: Fewer than 32 bytes of entropy.
        """
        if self.size and update.weight != 1:
            raise UpdateRefusedError(
                f"the weight is {update.weight:g}: user-level privacy needs weight 1",
                hint="Apply the round's privacy rule before encoding.",
            )
        joint = self.contribution.join(update)
        rotate(joint, self._rotation_key)
        joint *= self.scale
        return rounded(joint, self.l2, Words(derive(entropy, b"rounding")))

    def decode(self, total: Residues, clients: int) -> Sum:
        """Return what the residues of `clients` updates add up to, with their noise.

        Args:
            total: Sum of encoded updates modulo 2**bits, shape (length,).
            clients: How many updates are in it.

        Returns:
            The noisy sum; its weight is the number of clients, 0 where only statistics count.

        Raises:
            ProtocolError: No sum of that many encoded updates.
        """
        if total.shape != (self.length,) or total.dtype != self.dtype:
            raise ProtocolError(
                f"expected {self.length} residues, found {total.dtype} of shape {total.shape}"
            )
        if not self.min_cohort <= clients <= self.clients:
            raise ProtocolError(
                f"{clients} updates are in the sum, its noise is for"
                f" {self.min_cohort} to {self.clients}"
            )
        joint = total.view(f"i{self.bits // 8}").astype(np.float64)
        joint /= self.scale
        unrotate(joint, self._rotation_key)
        return self.contribution.split(joint, clients)

    @property
    def _rotation_key(self) -> bytes:
        """The rotation's key, for AES-256."""
        return bytes.fromhex(self.rotation) * 2

    def to_fields(self) -> dict[str, Field]:
        """Return the stored form; `from_fields(to_fields(e)) == e`."""
        return {
            "encoding": KIND,
            "bits": self.bits,
            "size": self.size,
            "norm": float(self.norm),
            "noise_multiplier": float(self.noise_multiplier),
            "clients": self.clients,
            "min_cohort": self.min_cohort,
            "scale": float(self.scale),
            "rotation": self.rotation,
            "statistics": statistics_text(self.statistics),
            "share": float(self.share),
        }

    @classmethod
    def from_fields(cls, stored: Mapping[str, object]) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: Not an encoding.
            CapacityError: One whose sums do not fit.
        """
        wrong = [key for key, kind in _TYPES.items() if type(stored.get(key)) is not kind]
        if wrong or set(stored) != set(_TYPES):
            raise ProtocolError(f"not an encoding: fields {sorted(stored)}, wrong are {wrong}")
        values: dict[str, Any] = dict(stored)
        if values.pop("encoding") != KIND:
            raise ProtocolError(f"not an encoding: {KIND} expected, found {stored['encoding']!r}")
        try:
            return cls(**{**values, "statistics": parse_statistics(values["statistics"])})
        except ValueError as error:
            raise ProtocolError(f"not an encoding: {error}") from error


@dataclass(frozen=True, slots=True)
class _Load:
    """What parameters mean for the residues, before it is known whether they fit."""

    contribution: Contribution
    noise_multiplier: float
    clients: int
    min_cohort: int
    bits: int
    scale: float

    @property
    def l2(self) -> float:
        return rounded_norm(self.scale * self.contribution.radius, self.contribution.length)

    @property
    def client_variance(self) -> float:
        return (self.noise_multiplier * self.l2) ** 2 / self.min_cohort

    @property
    def overflow(self) -> float:
        return log2_overflow(
            size=self.contribution.length,
            window=window(self.contribution.length),
            reach=self.scale * self.contribution.radius,
            variance=self.client_variance * self.clients,
            clients=self.clients,
            bits=self.bits,
        )

    @property
    def fits(self) -> bool:
        return self.client_variance <= LARGEST and self.overflow <= OVERFLOW

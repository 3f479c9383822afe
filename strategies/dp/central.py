"""Central differential privacy: devices clip, and the server adds noise to the sum, once.

    norm -> rule on the devices -> sum (secure or plain) -> release -> next norm

The sum is seen by whoever runs the server before the noise is in it; under secure aggregation that
is all that is seen. The model and everything made from it are private against everybody else.

Clipping is fixed, or follows a quantile of the updates' norms (Andrew et al. 2021):

    norm <- norm * exp(-rate * (share within the norm - quantile))

where the share comes out of the same noisy release as the sum, and costs nothing beyond it.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018;
Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, algorithm 1.
"""

import math
from dataclasses import dataclass, replace

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.dp import limits, noise
from wildflower.strategies.dp.contribution import WITHIN, Contribution
from wildflower.strategies.dp.events import EVERYONE, Gaussian, Sampling
from wildflower.strategies.errors import RoundAbortedError


@dataclass(frozen=True, slots=True)
class CentralDP:
    """Noise on a sum of bounded contributions.

    Attributes:
        noise_multiplier: Standard deviation of the noise over what one unit can add.
        contribution: What one unit can add.
    """

    noise_multiplier: float
    contribution: Contribution

    def __post_init__(self) -> None:
        """Refuse noise that makes no sense."""
        limits.noise_multiplier(self.noise_multiplier)

    def release(
        self,
        total: Sum,
        *,
        entropy: bytes,
        quantum: float = 0.0,
        statistic_quantum: float = 0.0,
        denominator: float | None = None,
    ) -> Sum:
        """Return the sum with noise on its vector and its statistics; only this may be stored.

        Args:
            total: Sum of updates that devices bounded by the same contribution. Statistics that
                it does not name are left out: they have no bound.
            entropy: 32 or more secret random bytes, for this call only. Whoever learns them can
                take the noise off again.
            quantum: Largest rounding of an element, if the sum went through residues.
            statistic_quantum: Largest rounding of a statistic.
            denominator: What the mean is taken over. Under Poisson sampling the expected size of
                the cohort; by default the number of updates.

        Raises:
            ValueError: Fewer than 32 bytes of entropy, or a denominator beyond its range.
            UpdateRefusedError: The sum is of another size, or lacks a statistic.
            RoundAbortedError: It is no sum of updates of weight 1.
        """
        require_weight(total, self.contribution.size)
        noisy = noise.release(
            self.contribution.join_sum(total),
            sensitivity=self.contribution.sensitivity(quantum, statistic_quantum),
            noise_multiplier=self.noise_multiplier,
            entropy=entropy,
        )
        released = self.contribution.split(noisy, total.clients)
        if denominator is None:
            return released
        limits.number("denominator", denominator, 1.0, limits.MAX_POPULATION)
        return replace(released, weight=float(denominator))

    def event(self, sampling: Sampling = EVERYONE) -> Gaussian:
        """Return what one release is accounted as."""
        return Gaussian(self.noise_multiplier, 1, sampling)

    def deviation(self) -> float:
        """Return the standard deviation of the noise on one element of the sum."""
        return self.noise_multiplier * self.contribution.radius


def require_weight(total: Sum, size: int) -> None:
    """Refuse a sum of weighted updates: one of weight 3 could add three times the norm.

    Raises:
        RoundAbortedError: The weight is not the number of updates.
    """
    if size and total.weight != total.clients:
        raise RoundAbortedError(
            f"{total.clients} updates weigh {total.weight:g}: user-level privacy needs weight 1",
            hint="Let the devices' rule set the weight, and max_weight be 1.",
        )


@dataclass(frozen=True, slots=True)
class AdaptiveClipping:
    """A norm that follows a quantile of the updates' norms.

    Attributes:
        quantile: Share of the devices that are not to be clipped, within (0, 1).
        rate: How fast the norm follows.
        lowest: Smallest norm.
        highest: Largest norm.
    """

    quantile: float = 0.5
    rate: float = 0.2
    lowest: float = 1e-3
    highest: float = 1e3

    def __post_init__(self) -> None:
        """Refuse what cannot be followed."""
        limits.number("quantile", self.quantile, 0.01, 0.99)
        limits.number("rate", self.rate, 0.001, 2.0)
        limits.norm(self.lowest, "lowest")
        limits.number("highest", self.highest, self.lowest, limits.LARGEST_NORM)

    def next(self, norm: float, released: Sum) -> float:
        """Return the norm of the next round.

        Args:
            norm: The norm of this round.
            released: The released sum, whose statistics hold `WITHIN`.

        Raises:
            ValueError: The sum is empty, or lacks the statistic.
        """
        if released.clients < 1 or WITHIN not in released.statistics:
            raise ValueError(f"the sum of {released.clients} updates has no statistic {WITHIN!r}")
        share = min(max(released.statistics[WITHIN] / released.clients, 0.0), 1.0)
        found = norm * math.exp(-self.rate * (share - self.quantile))
        return min(max(found, self.lowest), self.highest)

"""DP-SGD in the accountant's terms, for the device that trains and the server that writes it down.

A device knows how many examples it has; the server asks for a fewest number, and a device with
fewer refuses. With more examples a step takes a smaller share of them: epsilon per example is
largest on the smallest device, so the ledger's entry is the event of `fewest` examples. Devices
hold different examples, so the devices of a cohort do not add up: one example is on one of them.
"""

import math
from dataclasses import dataclass
from typing import Final

from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme

NOISE: Final = "dp-sgd-noise"
NORM: Final = "dp-sgd-norm"
MODE: Final = "dp-sgd-mode"
FEWEST: Final = "dp-sgd-examples"


def event_of(noise: float, *, examples: int, batch_size: int, epochs: int) -> Gaussian:
    """Return what a private training releases: each step is a round, drawn by coins.

    Args:
        noise: Noise multiplier.
        examples: How many a device trains on, at least 1.
        batch_size: Of the recipe; the expected number of examples of a step is near it.
        epochs: Expected passes over the examples.

    Raises:
        ValueError: A value beyond its range.

    Example:
        >>> event_of(1.0, examples=100, batch_size=32, epochs=2).rounds
        8
    """
    per_epoch = math.ceil(examples / batch_size)
    coins = Sampling(Scheme.POISSON, cohort=1, population=per_epoch)
    return Gaussian(noise, per_epoch * epochs, coins)


@dataclass(frozen=True, slots=True)
class Asked:
    """The DP-SGD that a server asks devices for.

    Attributes:
        noise: Noise multiplier.
        norm: Largest L2 norm of one example's gradient.
        fewest: Fewest examples of a device; one with fewer refuses.
        batch_size: Of the local training.
        epochs: Of the local training.
    """

    noise: float
    norm: float
    fewest: int
    batch_size: int
    epochs: int

    def to_config(self) -> dict[str, float]:
        """Return the entries of a round's config that ask for it."""
        return {NOISE: self.noise, NORM: self.norm, FEWEST: float(self.fewest)}

    def event(self) -> Gaussian:
        """Return what one answer releases of an example, at most."""
        return event_of(
            self.noise, examples=self.fewest, batch_size=self.batch_size, epochs=self.epochs
        )

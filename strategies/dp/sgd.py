"""DP-SGD in the accountant's terms, for the device that trains and the server that writes it down.

A device knows how many examples it has; the server asks for a fewest number, and a device with
fewer refuses. With more examples a step takes a smaller share of them: epsilon per example is
largest on the smallest device, so the ledger's entry is the event of `fewest` examples. Devices
hold different examples, so the devices of a cohort do not add up: one example is on one of them.
"""

import math

from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme


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

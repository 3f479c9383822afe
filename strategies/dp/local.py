"""Local differential privacy: the device adds the noise itself, and trusts nobody.

Whoever sees the answer, the server included, learns no more than epsilon. The price is that every
device's noise is in the sum: with n devices, the mean's error is sqrt(n) times that of noise added
once. It pays for very large cohorts and for statistics.

The server sees who answers, so what is hidden is what the device answered, not that it did: an
answer is accounted under `Relation.REPLACE` and without sampling, for each device by itself.
"""

from typing import Final

import numpy as np

from wildflower.strategies.arrays import Update
from wildflower.strategies.dp import limits, noise
from wildflower.strategies.dp.contribution import Contribution
from wildflower.strategies.dp.events import Gaussian, Relation

RELATION: Final = Relation.REPLACE
"""The relation under which answers are accounted."""


def randomise(
    update: Update, contribution: Contribution, *, noise_multiplier: float, entropy: bytes
) -> Update:
    """Return the update, bounded and with Gaussian noise on its vector and its statistics.

    Args:
        update: What the device would add.
        contribution: Its bounds.
        noise_multiplier: Standard deviation of the noise over `contribution.radius`.
        entropy: 32 or more secret random bytes, for this call only.

    Raises:
        ValueError: A noise multiplier beyond its range, or too little entropy.
        UpdateRefusedError: Not finite, of another shape, or a statistic is missing.
    """
    noisy = noise.release(
        contribution.join(update),
        sensitivity=contribution.radius,
        noise_multiplier=limits.noise_multiplier(noise_multiplier),
        entropy=entropy,
    )
    alone = contribution.split(noisy, 1)
    return Update(alone.vector.astype(np.float32), 1.0, alone.statistics)


def event(noise_multiplier: float, rounds: int = 1) -> Gaussian:
    """Return what `rounds` answers of one device are accounted as, under `RELATION`."""
    return Gaussian(noise_multiplier, rounds)

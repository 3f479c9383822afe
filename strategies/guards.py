"""What may enter a sum: the one check of an update, on the device and in plain rounds.

Under secure aggregation the device itself must refuse, before masking: nobody can look afterwards.
In a plain round the server runs the same check and leaves the update out.
"""

import math

import numpy as np

from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import UpdateRefusedError


def check_update(update: Update, size: int, *, evaluate_only: bool = False) -> None:
    """Refuse an update that would spoil the mean.

    Args:
        update: What a client wants to add.
        size: Elements of the model's vector.
        evaluate_only: True where only the statistics count: the vector may be all zeros and the
            weight 0.

    Raises:
        UpdateRefusedError: NaN or infinite values, another shape, no samples, nothing learned;
            the message says what was found and what was expected.
    """
    vector = update.vector
    if vector.shape != (size,):
        raise UpdateRefusedError(
            f"the update has shape {vector.shape}, the model has {size} elements",
            hint="Train the model this round started from.",
        )
    finite = np.isfinite(vector)
    if not finite.all():
        raise UpdateRefusedError(
            f"{size - int(finite.sum())} of {size} elements are NaN or infinite",
            hint="Training diverged: lower the learning rate, or look for bad examples.",
        )
    if not math.isfinite(update.weight) or update.weight < 0:
        raise UpdateRefusedError(f"the weight is {update.weight}, expected a number above 0")
    bad = {name: value for name, value in update.statistics.items() if not math.isfinite(value)}
    if bad:
        raise UpdateRefusedError(f"statistics that are no finite numbers: {bad}")
    if evaluate_only:
        return
    if update.weight == 0:
        raise UpdateRefusedError(
            "the weight is 0: no samples were trained on",
            hint="Check the device's data file.",
        )
    if not vector.any():
        raise UpdateRefusedError(
            "the update is all zeros: training changed nothing",
            hint="Check the learning rate and that the model has trainable parameters.",
        )

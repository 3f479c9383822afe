"""What Byzantine clients send instead of their updates.

    alone        sign_flip, scale, noise, poison, zero    Update -> Update
    together     little_is_enough, inner_product          honest updates -> the one all of them send
    in the data  label_flip                               Examples -> Examples

They keep the weight and the statistics, so that an attacker looks like anyone else; a weight is
lied about with `dataclasses.replace(update, weight=...)`.

Sources: Blanchard et al., NeurIPS 2017 (noise, scaling); Baruch et al., "A Little Is Enough",
NeurIPS 2019, algorithm 3; Xie et al., "Fall of Empires", UAI 2019 (inner product).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from wildflower.strategies.arrays import Update, Vector
from wildflower.strategies.task import Examples

Attack = Callable[[Update], Update]
"""What one client does to its update."""


def sign_flip(update: Update) -> Update:
    """Return the update that undoes this one.

    Example:
        >>> sign_flip(Update(np.array([0.5, -2.0], np.float32), 3.0, {})).vector.tolist()
        [-0.5, 2.0]
    """
    return replace(update, vector=-update.vector)


def scale(update: Update, factor: float) -> Update:
    """Return the update times a factor: a cohort's size replaces the model by the attacker's."""
    return replace(update, vector=(update.vector * np.float64(factor)).astype(np.float32))


def noise(update: Update, rng: np.random.Generator, deviation: float) -> Update:
    """Return Gaussian noise of a standard deviation in place of the update."""
    vector = rng.normal(0.0, deviation, update.vector.shape).astype(np.float32)
    return replace(update, vector=vector)


def poison(update: Update, value: float = math.nan, *, elements: int = 1) -> Update:
    """Return the update with its first elements replaced; NaN or infinity spoils a plain mean."""
    vector = update.vector.copy()
    vector[:elements] = value
    return replace(update, vector=vector)


def zero(update: Update) -> Update:
    """Return an update that changes nothing: a client that lets the others work."""
    return replace(update, vector=np.zeros_like(update.vector))


def little_is_enough(honest: Sequence[Update], clients: int, corrupt: int) -> Vector:
    """Return a vector that hides within the honest updates' spread, shape (n,).

    Args:
        honest: Updates that the attackers know, such as their own honest ones; at least 2.
        clients: Clients in the cohort, the attackers among them.
        corrupt: Attackers, fewer than half.

    Raises:
        ValueError: Too few updates are known, or the attackers are no minority.
    """
    if len(honest) < 2 or not 1 <= corrupt < clients / 2:
        raise ValueError(
            f"{len(honest)} honest updates and {corrupt} attackers of {clients}: 2 updates and a"
            " minority of 1 or more are needed"
        )
    stack = np.stack([update.vector for update in honest]).astype(np.float64)
    supporters = clients // 2 + 1 - corrupt
    quantile = (clients - corrupt - supporters) / (clients - corrupt)
    width = max(0.0, NormalDist().inv_cdf(min(max(quantile, 1e-9), 1 - 1e-9)))
    hidden: Vector = (stack.mean(axis=0) - width * stack.std(axis=0)).astype(np.float32)
    return hidden


def inner_product(honest: Sequence[Update], strength: float) -> Vector:
    """Return a vector that turns the mean against the honest direction, shape (n,).

    Args:
        honest: Updates that the attackers know, at least 1.
        strength: How far against it, above 0; small values hide from distances.

    Raises:
        ValueError: No updates, or a strength that is not above 0.
    """
    if not honest or not strength > 0:
        raise ValueError(f"{len(honest)} updates, strength {strength}: 1 and above 0 are needed")
    mean = np.mean([update.vector for update in honest], axis=0, dtype=np.float64)
    return np.asarray(-strength * mean, np.float32)


def label_flip(examples: Examples, classes: int) -> Examples:
    """Return the examples with every label `c` turned into `classes - 1 - c`.

    Raises:
        ValueError: A label is not within 0 and `classes - 1`.
    """
    targets = examples.targets
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(f"labels {targets.min()} to {targets.max()}, expected 0 to {classes - 1}")
    return Examples(examples.inputs, (classes - 1 - targets).astype(targets.dtype))

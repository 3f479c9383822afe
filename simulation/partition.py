"""How examples are dealt out to devices, so that they differ as real devices do.

Each label's examples go to the devices in proportions drawn from a Dirichlet distribution: a small
concentration gives every device a few labels of its own, a large one makes them alike.

Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019. We deviate in that every device gets at least a few examples.
"""

import numpy as np
import numpy.typing as npt

from wildflower.simulation.errors import SimulationError
from wildflower.strategies.task import Examples


def dirichlet_parts(
    labels: npt.NDArray[np.integer],
    parts: int,
    *,
    concentration: float,
    seed: int,
    at_least: int = 8,
) -> list[npt.NDArray[np.intp]]:
    """Return which examples each part gets; every example is in exactly one.

    Args:
        labels: The examples' labels, shape (examples,).
        parts: How many parts.
        concentration: Of the Dirichlet distribution, above 0; small means unequal.
        seed: Equal seeds give equal parts.
        at_least: Fewest examples of a part.

    Raises:
        SimulationError: There are too few examples.
    """
    if parts < 1 or concentration <= 0:
        raise ValueError(f"parts {parts} and concentration {concentration:g} must be above 0")
    if labels.size < parts * at_least:
        raise SimulationError(
            f"{labels.size} examples are too few for {parts} devices with {at_least} each",
            hint="Take fewer devices, or more examples.",
        )
    rng = np.random.default_rng(seed)
    owners = np.empty(labels.size, np.intp)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(parts, concentration))
        cuts = np.rint(np.cumsum(shares)[:-1] * members.size).astype(np.intp)
        for part, group in enumerate(np.split(members, cuts)):
            owners[group] = part
    _top_up(owners, parts, at_least)
    return [np.flatnonzero(owners == part) for part in range(parts)]


def _top_up(owners: npt.NDArray[np.intp], parts: int, at_least: int) -> None:
    """Give parts that have too few what the largest parts can spare, the last examples first."""
    counts = np.bincount(owners, minlength=parts)
    for part in range(parts):
        while counts[part] < at_least:
            richest = int(counts.argmax())
            owners[np.flatnonzero(owners == richest)[-1]] = part
            counts[richest] -= 1
            counts[part] += 1


def partition(examples: Examples, parts: int, *, concentration: float, seed: int) -> list[Examples]:
    """Return each device's own examples; see `dirichlet_parts`."""
    labels = np.asarray(examples.targets).reshape(len(examples))
    indices = dirichlet_parts(labels, parts, concentration=concentration, seed=seed)
    return [examples[index] for index in indices]

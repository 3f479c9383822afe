"""Secure sums of groups, and a robust rule over their means: secrecy that withstands poison.

    devices -> random groups, new ones each round -> one secure sum each -> means -> median

A secure sum hides each update, the poisoned one too; a robust rule must see what it compares. Here
it sees group means. One bad device spoils its group's mean and no more, and the rule outvotes that
group, as long as the groups without a bad device are in the majority.

    sum of all groups = weight of all groups * rule(means of the groups)

so that what follows a round need not know of groups. A group has one vote, whatever it weighs.

What it reveals: `REVEALS`. What it does not do: the statistics (losses, counts) are added up as
they are told, and a bad device can lie about them. The fewer groups, the better an update is
hidden; the more, the more bad devices are outvoted.

Sources: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean);
So et al., "Byzantine-Resilient Secure Federated Learning", JSAC 2021 (why not over single updates).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.errors import RoundAbortedError

SMALLEST: Final = 3  # devices of a group: the sum of two tells each what the other one sent
FEWEST: Final = 3  # groups: of two nobody can tell which one is wrong
MAX_GROUPS: Final = 1000
COLUMNS: Final = 1 << 14  # elements compared at a time; a thousand groups take 128 MiB

REVEALS: Final = (
    "The server learns the sum of each group, and which devices were in it; of an update it learns"
    " what the sum of so few tells. The groups are drawn anew each round."
)


@unique
class Rule(StrEnum):
    """How group means become one; both look at each element by itself."""

    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a cohort is divided, and what becomes of its parts.

    Attributes:
        groups: How many groups, 3 or more.
        min_group: Fewest devices of a group, 3 or more: what its sum hides an update among.
        rule: How group means become one.
        trim: How many of the largest and of the smallest values the trimmed mean leaves out: as
            many poisoned groups it withstands. The median withstands all but a majority.
    """

    groups: int
    min_group: int = SMALLEST
    rule: Rule = Rule.MEDIAN
    trim: int = 1

    def __post_init__(self) -> None:
        """Refuse what protects nothing."""
        if not FEWEST <= self.groups <= MAX_GROUPS:
            raise ValueError(f"groups is {self.groups}, allowed are {FEWEST} to {MAX_GROUPS}")
        if self.min_group < SMALLEST:
            raise ValueError(f"min_group is {self.min_group}, allowed are {SMALLEST} and above")
        if self.rule is Rule.TRIMMED_MEAN and not 1 <= self.trim <= (self.groups - 1) // 2:
            raise ValueError(
                f"trim is {self.trim}, allowed are 1 to {(self.groups - 1) // 2}"
                f" of {self.groups} groups"
            )

    @property
    def devices(self) -> int:
        """Fewest devices that can be divided so."""
        return self.groups * self.min_group

    @property
    def fewest(self) -> int:
        """Fewest groups whose means the rule can compare."""
        return FEWEST if self.rule is Rule.MEDIAN else 2 * self.trim + 1


def divide(nodes: Sequence[int], grouping: Grouping, *, entropy: bytes) -> list[tuple[int, ...]]:
    """Return the groups: random ones, of sizes that differ by at most one, each sorted.

    Args:
        nodes: Node ids of the cohort.
        grouping: How it is divided.
        entropy: 32 secret random bytes, for this round only; who could guess them could arrange
            to be in a group with a victim.

    Raises:
        RoundAbortedError: Too few devices.
    """
    if len(nodes) < grouping.devices:
        raise RoundAbortedError(
            f"{len(nodes)} devices, {grouping.groups} groups of {grouping.min_group} or more need"
            f" {grouping.devices}",
            hint="Wait for more devices, or ask for fewer or smaller groups.",
        )

    def place(node: int) -> bytes:
        return hashlib.sha256(b"wildflower/grouped" + entropy + node.to_bytes(16, "big")).digest()

    shuffled = sorted(nodes, key=place)
    return [tuple(sorted(shuffled[start :: grouping.groups])) for start in range(grouping.groups)]


def combine(sums: Sequence[Sum], grouping: Grouping) -> Sum:
    """Return the sum that stands for all groups.

    Args:
        sums: Of the groups that came through.
        grouping: Says how their means are compared.

    Raises:
        RoundAbortedError: Too few groups.
    """
    sums = [each for each in sums if each.weight > 0 or not each.vector.size]
    if len(sums) < grouping.fewest:
        raise RoundAbortedError(
            f"{len(sums)} groups came through, {grouping.rule} needs {grouping.fewest}",
            hint="Ask for more groups, or trim fewer.",
        )
    weight = sum(each.weight for each in sums)
    statistics = {name: sum(each.statistics[name] for each in sums) for name in sums[0].statistics}
    center = np.empty_like(sums[0].vector)
    for start in range(0, center.size, COLUMNS):
        means = np.stack([each.vector[start : start + COLUMNS] / each.weight for each in sums])
        center[start : start + COLUMNS] = _center(means, grouping)
    return Sum(center * weight, weight, statistics, sum(each.clients for each in sums))


def _center(means: npt.NDArray[np.float64], grouping: Grouping) -> npt.NDArray[np.float64]:
    """Return one value for each column of the means, shape (groups, elements)."""
    if grouping.rule is Rule.MEDIAN:
        found: npt.NDArray[np.float64] = np.median(means, axis=0)
        return found
    kept = np.sort(means, axis=0)[grouping.trim : len(means) - grouping.trim]
    mean: npt.NDArray[np.float64] = kept.mean(axis=0)
    return mean

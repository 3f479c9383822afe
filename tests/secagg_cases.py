"""Which clients a session of secure aggregation may lose, and when: the table of all cases.

Tests and the benchmark go through the same table. A case ends well if the sum is exact, or if the
session is ended without one; a sum that is not that of the survivors would be a catastrophe.
"""

import itertools
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

import numpy as np
from tests.secagg_fakes import Play, fleet, make_params

from wildflower.strategies.errors import SessionAbortedError
from wildflower.strategies.secagg.server import Phase

TRIPS: Final = (1, 2, 3, 4)
BITS: Final = (16, 32)


@unique
class Outcome(StrEnum):
    """What became of a session."""

    EXACT = "exact"
    ABORTED = "aborted"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Cohort:
    """Size of a cohort and its graph."""

    clients: int
    degree: int
    threshold: int

    @property
    def is_complete(self) -> bool:
        """Whether everyone is everyone's neighbour."""
        return self.degree == self.clients - 1


COMPLETE: Final = Cohort(8, 7, 5)
RING: Final = Cohort(14, 6, 4)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: how many clients are lost before each trip."""

    cohort: Cohort
    lost: tuple[int, int, int, int]
    bits: int

    def __str__(self) -> str:
        """Return the test's id."""
        shape = "complete" if self.cohort.is_complete else "ring"
        return f"{shape}-{'+'.join(map(str, self.lost))}-{self.bits}"

    @property
    def left(self) -> int:
        """How many clients answer the last trip."""
        return self.cohort.clients - sum(self.lost)


def _single(cohort: Cohort) -> list[tuple[int, ...]]:
    """Return one trip that loses nobody, one, all but the threshold, and one more."""
    enough = cohort.clients - cohort.threshold
    return [
        tuple(count if trip == struck else 0 for trip in TRIPS)
        for struck, count in itertools.product(TRIPS, (1, enough, enough + 1))
    ]


MIXED: Final = (
    (1, 1, 0, 0),
    (1, 0, 1, 0),
    (1, 0, 0, 1),
    (0, 1, 1, 0),
    (0, 1, 0, 1),
    (0, 0, 1, 1),
    (0, 1, 1, 1),
    (1, 1, 1, 0),
    (1, 1, 1, 1),
    (0, 0, 2, 1),
    (2, 0, 0, 1),
    (0, 2, 1, 1),
)
"""Mixtures of trips; three lost leave the threshold of the complete cohort, four do not."""


def _cases() -> tuple[Case, ...]:
    return tuple(
        Case(cohort, lost, bits)  # type: ignore[arg-type]  # four trips
        for cohort in (COMPLETE, RING)
        for lost in [(0, 0, 0, 0), *_single(cohort), *MIXED]
        for bits in BITS
    )


CASES: Final = _cases()


def outcome_of(case: Case) -> Outcome:
    """Play a case."""
    cohort = case.cohort
    params = make_params(
        cohort.clients,
        size=9,
        bits=case.bits,
        degree=cohort.degree,
        threshold=cohort.threshold,
    )
    devices = iter(fleet(cohort.clients)[1])
    gone = {
        trip: [each.device_id for each in itertools.islice(devices, count)]
        for trip, count in zip(TRIPS, case.lost, strict=True)
    }
    play = Play(params, gone=gone)
    try:
        total = play.run()
    except SessionAbortedError:
        return Outcome.ABORTED if play.session.phase is Phase.ABORTED else Outcome.WRONG
    # before the last trip nobody is missing from the sum but those who were lost by then
    expected = set(play.devices) - {each for trip in TRIPS[:3] for each in gone[trip]}
    is_exact = np.array_equal(total, play.plain_sum()) and set(play.session.survivors) <= expected
    return Outcome.EXACT if is_exact else Outcome.WRONG

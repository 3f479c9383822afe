"""The stage of the release line that decides what a release is: followed, naive or whole.

| way | the file | how it travels |
|---|---|---|
| FOLLOWED | made for the delta from the last release, `ota.build.followed` | that delta |
| NAIVE | the model's own build | the delta that comes of it |
| WHOLE | the model's own build, made ready to be followed where it is int8 | as it is |

A followed release must pass the same judge as the naive one and lose to it nowhere by more than
`Tolerance` says; the largest hold that does is taken. Of the deltas the shorter wins, and one that
is more than `plan.MAX_SHARE` of the whole file is none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum, unique

from wildflower.ota.build.followed import first, follow
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.plan import is_worthwhile
from wildflower.ota.delta.quantiser import HOLDS, Rules, largest_hold
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import QuantiseError


@unique
class Way(StrEnum):
    """What a release is."""

    FOLLOWED = "followed"
    NAIVE = "naive"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Quality:
    """What the judge finds of a build, on the gates' rows.

    Attributes:
        loss: Mean negative log-likelihood.
        agreement: Share of rows with the fp32 model's answer, in [0, 1].
    """

    loss: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much a followed release may be worse than the naive one.

    Attributes:
        loss: Relative to the naive build's loss.
        agreement: In shares of rows. Two equally good builds tip different close calls: at
            98.6 per cent on 250 rows their difference has a standard error of 0.01.
    """

    loss: float = 0.05
    agreement: float = 0.01

    def allows(self, found: Quality, naive: Quality) -> bool:
        """Whether a build of one quality may go out in place of the naive one."""
        is_near = found.loss <= naive.loss + self.loss * abs(naive.loss)
        return is_near and found.agreement >= naive.agreement - self.agreement


@dataclass(frozen=True, slots=True)
class Choice:
    """What is released.

    Attributes:
        way: What it is.
        model: The file.
        delta: From the last release; b"" for a release that travels whole.
        hold: Of a followed release; None otherwise.
    """

    way: Way
    model: bytes = field(repr=False)
    delta: bytes = field(repr=False, default=b"")
    hold: float | None = None


def choose_int8(
    previous: bytes | None,
    naive: bytes,
    master: bytes,
    *,
    limit: int,
    judge: Callable[[bytes], Quality],
    tolerance: Tolerance | None = None,
) -> Choice:
    """Return what to release of an int8 model.

    Args:
        previous: The last release of this target group; None if there is none.
        naive: The model's own int8 build.
        master: The model in fp32 as that build's quantiser saw it (`quantise.prepared`).
        limit: Largest integer of a weight: 127, or 64 where the range is reduced.
        judge: Measures a build.
        tolerance: By how much a followed release may be worse than the naive one.

    Raises:
        QuantiseError: `naive` was not made of `master`.
    """
    whole = Choice(Way.WHOLE, first(naive, master, limit=limit))
    if previous is None:
        return whole
    ways = [_by_delta(Way.NAIVE, previous, naive)]
    followed = _followed(previous, naive, master, limit, judge, tolerance or Tolerance())
    ways += [followed] if followed is not None else []
    shortest = min(ways, key=lambda way: len(way.delta))
    return shortest if is_worthwhile(len(shortest.delta), len(shortest.model)) else whole


def _followed(
    previous: bytes,
    naive: bytes,
    master: bytes,
    limit: int,
    judge: Callable[[bytes], Quality],
    tolerance: Tolerance,
) -> Choice | None:
    """Return the release with the largest hold that may go out; None if none may."""
    standard = judge(naive)

    def build(hold: float) -> bytes:
        return follow(previous, naive, master, rules=Rules(hold), limit=limit)

    try:
        hold = largest_hold(lambda one: tolerance.allows(judge(build(one)), standard), HOLDS)
    except QuantiseError:
        return None  # another architecture than the last release's: there is nothing to follow
    if hold is None:
        return None
    found = _by_delta(Way.FOLLOWED, previous, build(hold))
    return Choice(found.way, found.model, found.delta, hold)


def _by_delta(way: Way, previous: bytes, model: bytes) -> Choice:
    return Choice(way, model, diff(previous, model, regions_of(previous), regions_of(model)))

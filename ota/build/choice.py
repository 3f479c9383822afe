"""The stage of the release line that decides what a release is: followed, naive or whole.

| way | the file | how it travels |
|---|---|---|
| FOLLOWED | made of the last release by `ota.build.followed` or `ota.delta.fp32` | that delta |
| NAIVE | the model's own build | the delta that comes of it |
| WHOLE | the model's own build, made ready to be followed | as it is |

A followed release must pass the same judge as the naive one and lose to it nowhere by more than
`Tolerance` says; of those that do not, the first is taken, and those that lag furthest behind
(`ota.build.lag`) or have the largest steps are tried first. Of that and the naive delta the shorter
wins, and one that is more than `plan.MAX_SHARE` of the whole file is none.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum, unique

from wildflower.ota.build.followed import first, follow
from wildflower.ota.build.lag import mixtures
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.fp32 import SHARES, coded_release, ready
from wildflower.ota.delta.plan import is_worthwhile
from wildflower.ota.delta.quantiser import HOLDS, Rules
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import DeltaError, QuantiseError


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
        knob: How a followed release was made, such as "hold 0.05"; "" for others.
    """

    way: Way
    model: bytes = field(repr=False)
    delta: bytes = field(repr=False, default=b"")
    knob: str = ""


def choose_int8(
    previous: bytes | None,
    naive: bytes,
    master: bytes,
    *,
    limit: int,
    judge: Callable[[bytes], Quality],
    error: Callable[[bytes], float] | None = None,
    tolerance: Tolerance | None = None,
) -> Choice:
    """Return what to release of an int8 model.

    Args:
        previous: The last release of this target group; None if there is none.
        naive: The model's own int8 build.
        master: The model in fp32 as that build's quantiser saw it (`quantise.prepared`).
        limit: Largest integer of a weight: 127, or 64 where the range is reduced.
        judge: Measures a build.
        error: Measures how far a build's answers are from the fp32 model's; None to hold all
            tensors alike.
        tolerance: By how much a followed release may be worse than the naive one.

    Raises:
        QuantiseError: `naive` was not made of `master`.
    """
    whole = Choice(Way.WHOLE, first(naive, master, limit=limit))
    if previous is None:
        return whole

    def build(hold: float) -> bytes:
        return follow(previous, naive, master, rules=Rules(hold), limit=limit)

    passes = _gate(judge, naive, tolerance or Tolerance())
    ways = _holds(build) if error is None else _lags(previous, master, build, error)
    return _shortest(previous, naive, whole, _followed(ways, passes))


def choose_fp32(
    previous: bytes | None,
    own: bytes,
    *,
    judge: Callable[[bytes], Quality],
    tolerance: Tolerance | None = None,
) -> Choice:
    """Return what to release of an fp32 model.

    Args:
        previous: The last release of this target group; None if there is none.
        own: The model's own build, ONNX or ORT.
        judge: Measures a build.
        tolerance: By how much a followed release may be worse than the model's own build.
    """
    there = regions_of(own)
    whole = Choice(Way.WHOLE, ready(own, there))
    if previous is None:
        return whole
    known = regions_of(previous)

    ways = (
        (f"steps {share:g}", coded_release(previous, own, known, there, share=share))
        for share in SHARES
    )
    passes = _gate(judge, own, tolerance or Tolerance())
    # Between two files that are ready, even a naive delta knows steps where it finds some.
    return _shortest(previous, whole.model, whole, _followed(ways, passes))


def _gate(
    judge: Callable[[bytes], Quality], own: bytes, tolerance: Tolerance
) -> Callable[[bytes], bool]:
    """Return what says whether a followed build may go out in place of the model's own."""
    standard = judge(own)
    return lambda model: tolerance.allows(judge(model), standard)


def _holds(build: Callable[[float], bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the releases whose tensors are all held alike, by what they are called."""
    for hold in HOLDS:
        yield f"hold {hold:g}", build(hold)


def _lags(
    previous: bytes,
    master: bytes,
    build: Callable[[float], bytes],
    error: Callable[[bytes], float],
) -> Iterator[tuple[str, bytes]]:
    """Yield the releases whose tensors lag as far as each may, then the one that hardly lags."""
    held = [build(hold) for hold in reversed(HOLDS)]
    for number, model in enumerate(mixtures(previous, held, master, error), start=1):
        yield f"lag {number}", model
    yield "hold 0", held[0]


def _followed(
    ways: Iterable[tuple[str, bytes]], passes: Callable[[bytes], bool]
) -> tuple[str, bytes] | None:
    """Return the first build that may go out, and what it is called; None if none may."""
    try:
        return next((way for way in ways if passes(way[1])), None)
    except (QuantiseError, DeltaError):
        return None  # another architecture than the last release's: there is nothing to follow


def _shortest(
    previous: bytes, naive: bytes, whole: Choice, followed: tuple[str, bytes] | None
) -> Choice:
    """Return the way whose delta is the shortest, or the whole file."""
    ways = [_by_delta(Way.NAIVE, previous, naive)]
    if followed is not None:
        knob, model = followed
        ways.append(replace(_by_delta(Way.FOLLOWED, previous, model), knob=knob))
    shortest = min(ways, key=lambda way: len(way.delta))
    return shortest if is_worthwhile(len(shortest.delta), len(shortest.model)) else whole


def _by_delta(way: Way, previous: bytes, model: bytes) -> Choice:
    return Choice(way, model, diff(previous, model, regions_of(previous), regions_of(model)))

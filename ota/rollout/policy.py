"""When a rollout widens, waits or stops: one pure function over counted reports.

Halting needs no quorum: the first failure too many stops the rollout, however few devices have
answered. Advancing needs one: enough reports in all, and at least one from every target group the
stage reaches, because each group runs an artifact of its own.

Counts are cumulative over the rollout (the latest outcome of each device), so a stage starts from
what the stages before it have shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

from wildflower.ota.errors import RolloutError

COMMITTED: Final = frozenset({"committed"})
FAILED: Final = frozenset({"rolled-back", "failed", "refused"})
INCOMPATIBLE: Final = frozenset({"incompatible"})
"""The outcomes of `ota.device.report.Outcome` by what they say about a release.

A refusal that names a rollout is a failure of it: no source had what was signed. What one mirror
served wrongly while another did better is reported outside any rollout and not counted here.
"""


@unique
class OnHalt(StrEnum):
    """What devices are told when a rollout halts by itself."""

    ROLL_BACK = "roll-back"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a rollout.

    Attributes:
        permille: Share of every target group that may hold the release, in [1, 1000].
        min_reports: Devices, over all groups, that must have committed or failed before the stage
            is left; fewer if the stage reaches fewer, but not below one. 0 waits for nobody.
        max_failures: Failures, over all groups, that are tolerated; one more halts.
        soak_s: Seconds the stage is watched after it has its reports.
    """

    permille: int
    min_reports: int
    max_failures: int
    soak_s: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a rollout spreads.

    Attributes:
        stages: In order; each reaches more devices than the one before.
        window_s: Devices spread their downloads over this many seconds.
        needs_approval: Whether it waits for someone to approve it.
        on_halt: What devices are told when it halts by itself.
    """

    stages: tuple[Stage, ...]
    window_s: int = 0
    needs_approval: bool = False
    on_halt: OnHalt = OnHalt.ROLL_BACK

    def check(self) -> None:
        """Check every range that the types do not.

        Raises:
            RolloutError: No stage, stages that do not widen, or a value out of range.
        """
        if not self.stages or self.window_s < 0:
            raise RolloutError("a plan needs a stage, and window_s is not below 0")
        shares = [stage.permille for stage in self.stages]
        if shares != sorted(set(shares)) or shares[0] < 1 or shares[-1] > 1000:
            raise RolloutError(
                f"stages of permille {shares}",
                hint="Each stage reaches more than the one before, within [1, 1000].",
            )
        for number, stage in enumerate(self.stages, 1):
            if min(stage.min_reports, stage.max_failures, stage.soak_s) < 0:
                raise RolloutError(f"stage {number}: a count or time is below 0")


@dataclass(frozen=True, slots=True)
class Tally:
    """What the devices of one target group have reported in a rollout, each counted once."""

    committed: int = 0
    failed: int = 0
    incompatible: int = 0

    def merge(self, other: "Tally") -> "Tally":
        """Return the sum; `Tally()` is its identity."""
        return Tally(
            self.committed + other.committed,
            self.failed + other.failed,
            self.incompatible + other.incompatible,
        )


def count(outcomes: Iterable[str]) -> Tally:
    """Count outcomes, the latest of each device.

    Args:
        outcomes: Values of `ota.device.report.Outcome`; others count as nothing.

    Example:
        >>> count(["committed", "rolled-back", "refused"])
        Tally(committed=1, failed=2, incompatible=0)
    """
    found = list(outcomes)
    return Tally(
        sum(outcome in COMMITTED for outcome in found),
        sum(outcome in FAILED for outcome in found),
        sum(outcome in INCOMPATIBLE for outcome in found),
    )


@unique
class Verdict(StrEnum):
    """What the reports of a stage say."""

    ADVANCE = "advance"
    WAIT = "wait"
    HALT = "halt"


def verdict(stage: Stage, reach: Mapping[str, int], tallies: Mapping[str, Tally]) -> Verdict:
    """Judge a stage.

    Args:
        stage: Its demands.
        reach: Devices of each target group that the stage admits.
        tallies: What they have reported, by target group; a missing group has reported nothing.

    Returns:
        HALT as soon as failures exceed `max_failures`; else ADVANCE with enough reports in all
        and one from every group that is reached; else WAIT. Incompatible devices lower the number
        of reports that can be had, but at least one device must have run the release.

    Example:
        >>> verdict(Stage(100, 2, 0, 0), {"g": 5}, {"g": Tally(committed=2)}).value
        'advance'
    """
    total = _total(tallies[group] for group in reach if group in tallies)
    if total.failed > stage.max_failures:
        return Verdict.HALT
    if stage.min_reports == 0:
        return Verdict.ADVANCE
    silent = any(
        devices and tallies.get(group, Tally()) == Tally() for group, devices in reach.items()
    )
    wanted = max(1, min(stage.min_reports, sum(reach.values()) - total.incompatible))
    enough = total.committed + total.failed >= wanted
    return Verdict.ADVANCE if enough and not silent else Verdict.WAIT


def why_halted(stage: Stage, tallies: Mapping[str, Tally]) -> str:
    """Return a sentence that says which groups failed, for people and for the record."""
    failed = {group: tally.failed for group, tally in sorted(tallies.items()) if tally.failed}
    where = ", ".join(f"{count} in {group}" for group, count in failed.items())
    return f"{sum(failed.values())} failures, {stage.max_failures} tolerated: {where}"


def _total(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total = total.merge(tally)
    return total


def staged(permilles: Sequence[int], *, min_reports: int, max_failures: int, soak_s: int) -> Plan:
    """Return a plan whose stages differ only in their reach.

    Raises:
        RolloutError: The stages do not widen, or a value is out of range.
    """
    plan = Plan(tuple(Stage(share, min_reports, max_failures, soak_s) for share in permilles))
    plan.check()
    return plan

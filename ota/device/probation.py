"""What a look at a release on probation means: it stays, it goes, or it is looked at again.

A trial shows what a model answers; a probation shows what it does to the device that runs it. Only
seconds count that were seen to be healthy, by a clock that nobody can set: a device that is off, or
believes in 1970, does not commit by waiting. The deadline is by the calendar, because a device that
was never able to look is no different from one that the release took down.
"""

from datetime import datetime, timedelta
from typing import Final

from wildflower.ota.device.machine import Abandoned, Done, Event, Failed
from wildflower.ota.device.report import Outcome
from wildflower.ota.release.manifest import TrialBudget

PATIENCE: Final = 4
"""How many times the window a device may take: one that is on for six hours a day gets there."""
GRACE: Final = timedelta(days=1)
"""And beyond that: a short window must not end because somebody went home and switched it off."""


def decide(
    budget: TrialBudget, *, since: datetime, now: datetime, healthy_s: float, ailment: str
) -> Event | None:
    """Return what a look means for a release on probation; None while it goes on.

    Args:
        budget: What was signed for it.
        since: When it began to run.
        now: The device's time.
        healthy_s: Seconds between looks that were all good.
        ailment: What is wrong with it now, in a sentence; "" for nothing.
    """
    if ailment:
        return Failed(Outcome.ROLLED_BACK, f"on probation: {ailment}")
    if healthy_s >= budget.probation_s:
        return Done()
    if now >= deadline(budget, since):
        told = f"{healthy_s:.0f} healthy seconds, expected {budget.probation_s}"
        return Abandoned(f"no decision on probation in time: found {told}")
    return None


def deadline(budget: TrialBudget, since: datetime) -> datetime:
    """Return when a release that began to run at `since` must have been committed."""
    return since + PATIENCE * timedelta(seconds=budget.probation_s) + GRACE

"""Looks after a release on probation: the owner's own check, and what the application recorded.

The check is an executable of the owner's, named in agent.toml. Exit code 0 says that the device
does well; everything else, also a check that cannot be run or hangs, says that the release must go.
It finds WILDFLOWER_RELEASE, WILDFLOWER_SLOT and WILDFLOWER_HEALTHY_S in its environment.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wildflower.client.config import AgentConfig
from wildflower.client.spool import Spool
from wildflower.ota.device import probation
from wildflower.ota.device.effects import Watch
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Abandoned, Done, Event
from wildflower.ota.device.program import run_program
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError, PostponedError, ProgramError
from wildflower.ota.release.manifest import Release

if TYPE_CHECKING:
    from wildflower.ota.observe.summary import Summary

log = logging.getLogger(__name__)

HEALTHY: Final = "healthy-seconds"
"""The journal's fact: an attempt, and the seconds for which its release was seen to do well."""
MANY: Final = 100  # summaries; one is cut every hour, so they are about the last four days
FEW: Final = 20
"""Inferences below which an error rate says nothing."""


@dataclass(slots=True)
class Watcher:
    """Looks after one device's release on probation.

    Attributes:
        config: The device's settings.
        journal: Its memory.
        slots: Its slots.
        now: Its clock.
        steady: Seconds of a clock that nobody can set.
        should_stop: Whether the agent is told to end.
        last: Attempt and time of the last good look of this process; None before the first.
    """

    config: AgentConfig
    journal: Journal
    slots: Slots
    now: Callable[[], datetime]
    steady: Callable[[], float]
    should_stop: Callable[[], bool]
    last: tuple[int, float] | None = None

    def look(self, effect: Watch) -> Event:
        """Look at the release once.

        Raises:
            PostponedError: It does well, and its time is not over.
            StorageError: The journal cannot be written.
        """
        budget = effect.release.trial
        if not budget.probation_s:
            return Done()
        ailment = self._ailment(effect)
        healthy_s = healthy_seconds(self.journal, effect.attempt)
        if not ailment:
            healthy_s = self._count(effect.attempt, healthy_s)
        event = probation.decide(
            budget, since=effect.since, now=self.now(), healthy_s=healthy_s, ailment=ailment
        )
        if event is None:
            raise PostponedError(f"on probation: {healthy_s:.0f} of {budget.probation_s} s healthy")
        if event == Done() and not self._is_whole(effect.release):
            return Abandoned("on probation: what runs is not what was signed any more")
        return event

    def _is_whole(self, release: Release) -> bool:
        """Whether it is still the release that ran, every byte of it."""
        return self.slots.running() == release.digest and self.slots.is_complete(release)

    def _count(self, attempt: int, healthy_s: float) -> float:
        """Add what has passed since the last good look of this process."""
        now_s = self.steady()
        if self.last is not None and self.last[0] == attempt:
            healthy_s += now_s - self.last[1]
        self.last = (attempt, now_s)
        self.journal.set_fact(HEALTHY, f"{attempt} {healthy_s:.3f}")
        return healthy_s

    def _ailment(self, effect: Watch) -> str:
        """Return what is wrong with the release on this device; "" for nothing."""
        artifact = effect.release.artifact.digest
        return self._checked(effect) or recorded_ailment(self.config, artifact, effect.since)

    def _checked(self, effect: Watch) -> str:
        """Return why the owner's check is not content; "" if it is, or there is none."""
        check = self.config.health_check
        if not check:
            return ""
        digest = effect.release.digest
        environment = {
            "WILDFLOWER_RELEASE": digest,
            "WILDFLOWER_SLOT": str(self.slots.path(digest)),
            "WILDFLOWER_HEALTHY_S": f"{healthy_seconds(self.journal, effect.attempt):.0f}",
        }
        try:
            ended = run_program(
                [str(self.config.directory / check)],
                environment=environment,
                directory=self.config.directory,
                timeout_s=self.config.health_timeout_s,
                should_stop=self.should_stop,
            )
        except ProgramError as error:
            return f"the health check {error}"
        return "" if ended.code == 0 else f"the health check {ended}"


def healthy_seconds(journal: Journal, attempt: int) -> float:
    """Return the seconds for which the release of an attempt was seen to do well."""
    whose, _, seconds = journal.fact(HEALTHY).partition(" ")
    try:
        return max(0.0, float(seconds)) if whose == str(attempt) else 0.0
    except ValueError:  # a flipped bit: counted anew
        return 0.0


def recorded_ailment(config: AgentConfig, artifact: str, since: datetime) -> str:
    """Return what the application's own records say against an artifact; "" for nothing.

    Looked at are the last summaries that began after `since`, whether the server has them already
    or not: too few inferences say nothing, and so does an application that has not cut one yet.
    """
    if config.health_max_error_rate == 1.0 and not config.health_max_latency_ms:
        return ""
    found = _recorded(config.directory / "spool", artifact, since)
    if found is None or found.n + found.errors < FEW:
        return ""
    rate, slow_ms = found.error_rate or 0.0, found.latency_quantile(0.99) or 0.0
    if rate > config.health_max_error_rate:
        return f"{rate:.3g} of inferences fail, allowed {config.health_max_error_rate:g}"
    if 0 < config.health_max_latency_ms < slow_ms:
        return (
            f"one inference in 100 takes {slow_ms:.3g} ms, "
            f"allowed {config.health_max_latency_ms:g} ms"
        )
    return ""


def _recorded(directory: Path, artifact: str, since: datetime) -> "Summary | None":
    from wildflower.ota.observe.summary import Summary  # it takes numpy, and most agents no limit

    total: Summary | None = None
    for _, payload in Spool(directory).recent(MANY):
        try:
            one = Summary.from_bytes(payload)
        except FormatError:  # the uploader's business
            continue
        if one.artifact != artifact or one.start is None or one.start < since:
            continue
        if total is None or one.baseline == total.baseline:
            total = one if total is None else total.merge(one)
    return total

"""Looks for releases and sees them through: the rollout, the decision, the machine, the reports.

It decides nothing: `ota.device.decision` says what a rollout means here, `ota.device.machine` what
an update owes. What a source was refused for becomes a report of its own, once.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from wildflower.client.acceptance import Acceptance
from wildflower.client.config import AgentConfig
from wildflower.client.doubt import take_doubt
from wildflower.client.fetcher import Fetcher, running_artifact
from wildflower.client.groups import find_group
from wildflower.client.handlers import Handlers
from wildflower.client.health import Watcher
from wildflower.client.policy import Policy
from wildflower.client.repository import Repository
from wildflower.client.scrub import SETTLED, Scrub
from wildflower.client.update_lock import UpdateLock
from wildflower.ota import canonical
from wildflower.ota.device import decision, shell
from wildflower.ota.device.decision import Standing
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Event, Phase
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, PostponedError, RefusedError
from wildflower.ota.rollout.document import RolloutDocument

log = logging.getLogger(__name__)

CLOCK_SUSPECT: Final = "; if others take it, the clock of this device is suspect"
"""What has expired for one device alone has not expired."""


def end_in_good_order() -> None:
    """End this process as its supervisor would; one that always starts it anew brings it back."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(slots=True)
class Updates:
    """One device's updates.

    Attributes:
        config: The device's settings.
        policy: What its owner allows.
        journal: Its memory.
        slots: Its slots.
        releases: Its way to releases.
        now: Its clock, never earlier than a time at which signed metadata was fresh.
        should_stop: Whether the agent is told to end.
        steady: Seconds of a clock that nobody can set.
        why_wait: Tells why a whole model file, or anything else, is not fetched now; "" if it may.
        restart: Ends the agent, so that whoever supervises it starts it anew.
        told: How many of the repository's refusals are in the journal.
        damaged: Digest of the running release if it is not what was signed any more; else "".
        group: The devices that share its artifact; "" until the repository has told.
        lock: What keeps new releases out: the owner, and applications that hold.
    """

    config: AgentConfig
    policy: Policy
    journal: Journal
    slots: Slots
    releases: Repository
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    steady: Callable[[], float] = time.monotonic
    why_wait: Callable[[bool], str] = lambda _: ""
    restart: Callable[[], None] = end_in_good_order
    told: int = 0
    damaged: str = ""
    group: str = ""
    lock: UpdateLock = field(init=False)
    _watcher: Watcher = field(init=False)
    _scrub_at_s: float = 0.0
    _mending_waits: bool = False

    def __post_init__(self) -> None:
        """Make what looks after releases on probation, and the update lock; they remember."""
        self.lock = UpdateLock(self.config.directory, self.slots)
        self._watcher = Watcher(
            config=self.config,
            journal=self.journal,
            slots=self.slots,
            now=self.now,
            steady=self.steady,
            should_stop=self.should_stop,
        )

    def begin(self) -> None:
        """Pick up what a stop or a crash left; to be called once, before anything else.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        if self.journal.is_new:
            self.journal.recall_from(self.slots.releases())
        self._examine()
        if under_way := self.journal.load().release:
            self.group = under_way.target_group
        was_clean = self.journal.fact("ended") == "cleanly"
        self.journal.set_fact("ended", "")
        fetcher = self._fetcher()
        try:
            if was_clean or (under_way and self.lock.obstacle(under_way.digest)):
                shell.resume(self.journal, self.lock.around(fetcher.run))
            else:
                shell.wake(self.journal, self.lock.around(fetcher.run), fetcher.received())
        except PostponedError:
            log.info("an update is under way and waits")
        try:
            self._handlers().begin(was_clean=was_clean)
        except PostponedError as error:
            log.info("software waits: %s", error)

    def go_on(self) -> None:
        """Go on with what waited for an application, if it waits no more.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        try:
            shell.resume(self.journal, self.lock.around(self._fetcher().run))
        except PostponedError:
            log.debug("the update waits: %s", "; ".join(self.lock.waiting))

    def end(self) -> None:
        """Remember that the agent ended because it was told to, which counts against no update."""
        self.journal.set_fact("ended", "cleanly")

    def look(self) -> None:
        """Look at the rollout of this device's target group and do what it means here.

        Raises:
            ReleaseError: What is served cannot be had or trusted now.
            ConfigError: The settings must say which model the device runs.
            StorageError: The disk is full, read-only or broken.
        """
        try:
            with self.releases.kept():
                try:
                    self._scrub_if_due()
                    self._look()
                except PostponedError as error:
                    log.info("the update waits: %s", error)
                self._look_for_software()
        finally:
            self.queue_refusals()

    def _look_for_software(self) -> None:
        """Look at the lines of software that the owner accepts; a model's update does not wait."""
        handlers = self._handlers()
        try:
            handlers.resume()
            for name in () if self.lock.paused else self.policy.software:
                software = self.releases.software(name)
                if software is not None:
                    handlers.offer(software)
        except PostponedError as error:
            log.info("software waits: %s", error)

    def _look(self) -> None:
        run = self.lock.around(self._fetcher().run)
        try:
            document = self._document()
        except (FetchError, RefusedError):
            shell.resume(self.journal, run)  # what is on the device already may go on
            raise
        event = self._event(document)
        if event is None:
            shell.resume(self.journal, run)
        else:
            shell.handle(self.journal, run, event)
        if self.damaged:
            self._examine()

    def _document(self) -> RolloutDocument | None:
        self.releases.refresh()
        self.journal.set_fact("seen-time", canonical.to_time(self.now()))
        if self.config.model:
            self.group = self.config.target_group
        else:
            self.releases.rollout(self.config.device_class)  # any name loads the role's list
            cache = self.config.directory / "tuf"
            self.group = find_group(cache, self.config.device_class, self._tell_theft)
        return self.releases.rollout(self.group) if self.group else None

    def _event(self, document: RolloutDocument | None) -> Event | None:
        state, standing, now = self.journal.load(), self.standing(), self.now()
        if state.phase is not Phase.IDLE:
            return decision.reconsider(state, document, standing.device_id, now)
        if document is None:
            return None
        if why := decision.forgery(document):
            self._tell_theft(why)
            return None
        if decision.cannot_go_back(document, standing, now):
            reason = "ordered back, but there is no earlier release to go back to"
            self._tell_order(document, "stuck", reason)
        if order := decision.recall(document, standing, now):
            if not self.lock.keeps(document.release, self.policy):
                return order
            self._tell_order(document, "kept", "ordered back, but pinned by the device's owner")
        if why := self.obstacle(document, standing):
            log.debug("no update: %s", why)
            return None
        release = self.releases.release(
            document.release_path, accepted=self.policy.release, expected=document.release
        )
        if why := decision.overreach(document, release, now):
            self._tell_theft(why)
        offered = decision.offer(document, release, standing, now)
        return offered if offered and self._acceptance.accepts(document, release) else None

    def obstacle(self, document: RolloutDocument, standing: Standing) -> str:
        """Return why what a rollout orders is not even looked at now; "" if it is."""
        return (
            decision.obstacle(document, standing, self.now())
            or self.lock.obstacle(document.release)
            or self._acceptance.obstacle(document)
        )

    def standing(self) -> Standing:
        """Return where this device stands, for a decision."""
        running = self.slots.running()
        return Standing(
            device_id=self.config.device_id,
            device_class=self.config.device_class,
            running=self.slots.manifest(running) if running != self.damaged else None,
            has_previous=bool(self.slots.before()),
            highest_order=self.journal.highest_order(self.group),
            quarantined=frozenset(self.journal.quarantined()),
            setbacks=self.journal.setbacks(),
            roles=self.policy.release,
        )

    def queue_refusals(self) -> None:
        """Queue a report for each thing that a source served and this device refused.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        for refusal in self.releases.refusals[self.told :]:
            reason = refusal.sentence
            about = canonical.digest(f"{refusal.source} {refusal.target}".encode())[:16]
            lasting, _, as_of = refusal.reason.partition(" (as of ")  # told once, not at each look
            key = f"refusal/{about}/{canonical.digest(lasting.encode())[:16]}"
            reason += CLOCK_SUSPECT if as_of else ""
            is_told = any(reason in entry.reason for entry in self.journal.reports())
            if not is_told and self._tell_refusal(key, reason):
                log.warning("refused: %s", reason)
            self.told += 1

    def _tell_refusal(self, key: str, reason: str) -> bool:
        return self._queue(key, Outcome.REFUSED, rollout="", release="", reason=reason)

    def _tell_theft(self, reason: str) -> None:
        """Report, once, what the server's own key signed and a server of ours never says.

        It names no rollout, so that it does not count in the one that it came with.
        """
        about = canonical.digest(reason.encode())[:32]
        if self._tell_refusal(f"theft/{about}", reason):
            log.error("refused: %s", reason)

    def _tell_order(self, document: RolloutDocument, key: str, reason: str) -> None:
        """Report, once, that an order is not followed."""
        self._queue(
            f"{key}/{document.rollout}",
            Outcome.FAILED,
            rollout=document.rollout,
            release=document.release,
            reason=reason,
        )

    def _queue(
        self, key: str, outcome: Outcome, *, rollout: str, release: str, reason: str
    ) -> bool:
        return self.journal.queue(
            key,
            outcome,
            rollout=rollout,
            release=release,
            running=running_artifact(self.slots),
            reason=reason,
            at=self.now(),
        )

    def _examine(self) -> None:
        """Look whether what runs is still what was signed; if not it is installed again."""
        scrub = self._scrub()
        self.damaged = scrub.running_damage()
        if not self.damaged:
            return
        log.error("the running release is damaged; it is installed again when it can be had")
        reason = "the running release is not what was signed any more"
        if self.journal.load().phase in SETTLED and scrub.step_back(self.damaged):
            self._tell_damage(f"{reason}; the one before it runs until it is installed again")
            self.damaged = ""
        else:
            self._tell_damage(reason)

    def _scrub_if_due(self) -> None:
        """Compare all that is installed with what was signed: at the first look, then at times."""
        now_s = self.steady()
        if take_doubt(self.config.directory) or now_s >= self._scrub_at_s:
            self._scrub_at_s = now_s + self.policy.scrub_s if self.policy.scrub_s else math.inf
            self._examine()
        elif not self._mending_waits or self.why_wait(True):
            return
        told = self._scrub().mend_previous() if self.journal.load().phase in SETTLED else ""
        self._mending_waits = bool(told and self.why_wait(True))
        if told:
            log.warning("%s", told)
            self._tell_damage(told)

    def _tell_damage(self, reason: str) -> None:
        """Queue a report of damage, once a day for one and the same."""
        about = canonical.digest(f"{self.slots.running()} {self.damaged} {reason}".encode())[:16]
        key = f"damage/{about}/{canonical.to_time(self.now())[:10]}"
        self._queue(key, Outcome.FAILED, rollout="", release=self.damaged, reason=reason)

    @property
    def _acceptance(self) -> Acceptance:
        return Acceptance(self.policy.demands, self.journal, self.slots, self.releases, self.now)

    def _handlers(self) -> Handlers:
        return Handlers(
            directory=self.config.directory,
            device_class=self.config.device_class,
            accepted=self.policy.software,
            timeout_s=self.config.handler_timeout_s,
            journal=self.journal,
            slots=self.slots,
            releases=self.releases,
            now=self.now,
            should_stop=self.should_stop,
            why_wait=lambda: self.why_wait(True),
            restart=self._restart,
        )

    def _restart(self) -> None:
        """End the agent, unless an application holds; then it waits, as a switch does.

        Raises:
            PostponedError: Somebody holds.
        """
        with self.lock.unheld():
            self.restart()

    def _scrub(self) -> Scrub:
        return Scrub(
            slots=self.slots,
            journal=self.journal,
            releases=self.releases,
            downloads=self.config.directory / "downloads",
            now=self.now,
            should_stop=self.should_stop,
            why_wait=self.why_wait,
        )

    def _fetcher(self) -> Fetcher:
        return Fetcher(
            config=self.config,
            journal=self.journal,
            slots=self.slots,
            releases=self.releases,
            standing=self.standing,
            watch=self._watcher.look,
            now=self.now,
            should_stop=self.should_stop,
            why_wait=self.why_wait,
            deltas=self.policy.delta_fetch == "allowed",
        )

"""Carries out what the device machine owes: fetch, verify, stage, try, commit, roll back, report.

Each effect may be repeated after a power cut and then changes nothing. What cannot go on now (no
network, a full disk) is an `InterruptedUpdateError`: it stays owed.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, assert_never

from wildflower.client.config import AgentConfig
from wildflower.client.self_report import measure_self
from wildflower.ota import canonical
from wildflower.ota.device.decision import missing
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import (
    Commit,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    Preflight,
    Report,
    RollBack,
    Stage,
    Try,
    Verify,
)
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.shell import InterruptedUpdateError
from wildflower.ota.device.slots import Slots, check_file
from wildflower.ota.device.trial import run_trial
from wildflower.ota.errors import FetchError, FormatError, RefusedError, StorageError, TrialError
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.ota.release.manifest import Release

log = logging.getLogger(__name__)


class Recall(Protocol):
    """How the fetcher tells what it met: refusals become reports of their own."""

    def __call__(self) -> None:
        """Queue what the release client refused since the last call."""
        ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Runs effects on one device.

    Attributes:
        config: The device's settings.
        journal: Its memory.
        slots: Its slots.
        releases: Its way to releases.
        now: Its clock.
        should_stop: Whether the agent is told to end.
        tell_refusals: Queues what the release client refused.
    """

    config: AgentConfig
    journal: Journal
    slots: Slots
    releases: ReleaseClient
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    tell_refusals: Recall

    @property
    def downloads(self) -> Path:
        """Where part files lie, by digest."""
        return self.config.directory / "downloads"

    def run(self, effect: Effect) -> Event:
        """Carry out one effect and say what came of it.

        Raises:
            InterruptedUpdateError: It cannot go on now.
        """
        try:
            return self._run(effect)
        except (FetchError, StorageError) as error:
            self.tell_refusals()
            log.warning("update interrupted: %s", error, extra={"effect": type(effect).__name__})
            raise InterruptedUpdateError(str(error)) from error
        except (RefusedError, FormatError) as error:
            self.tell_refusals()
            return Failed(Outcome.REFUSED, str(error))

    def _run(self, effect: Effect) -> Event:
        match effect:
            case Preflight(path, digest):
                return self._preflight(path, digest)
            case Fetch(digest):
                return self._fetch(self._manifest(digest))
            case Verify(digest):
                return self._verify(self._manifest(digest))
            case Stage(digest):
                return self._stage(self._manifest(digest))
            case Try(digest):
                return self._try(self._manifest(digest))
            case Commit(digest):
                return self._commit(self._manifest(digest))
            case RollBack(digest, quarantine):
                return self._roll_back(digest, quarantine=quarantine)
            case Report():
                return self._report(effect)
            case _:
                assert_never(effect)

    def _preflight(self, path: str, digest: str) -> Event:
        release = self.releases.release(path)
        if release.digest != digest:
            raise RefusedError(f"{path} is {release.digest[:12]}, the rollout says {digest[:12]}")
        report = measure_self(self.config.directory, claimed_flags=self.config.cpu_flags)
        if lack := missing(release.requires, report, self.config.device_class):
            return Failed(Outcome.INCOMPATIBLE, lack)
        self.slots.require_space(release)
        self.downloads.mkdir(exist_ok=True)
        kept = self.downloads / f"{digest}.json"
        partial = kept.with_suffix(".partial")
        partial.write_bytes(release.to_bytes())
        partial.replace(kept)
        return Done()

    def _fetch(self, release: Release) -> Event:
        for entry in release.files:
            target = self.downloads / entry.digest
            if not target.exists():
                self.releases.fetch(entry, target, should_stop=self.should_stop)
        self.tell_refusals()
        return Done()

    def _verify(self, release: Release) -> Event:
        for entry in release.files:
            try:
                check_file(self.downloads / entry.digest, entry)
            except RefusedError:
                (self.downloads / entry.digest).unlink(missing_ok=True)
                raise
        return Done()

    def _stage(self, release: Release) -> Event:
        files = {entry.name: self.downloads / entry.digest for entry in release.files}
        self.slots.stage(release, files)
        return Done()

    def _try(self, release: Release) -> Event:
        slot = self.slots.path(release.digest)
        model, golden = slot / release.artifact.name, slot / release.file("golden").name
        try:
            result = run_trial(model, golden, release.trial)
        except TrialError as error:
            return Failed(Outcome.ROLLED_BACK, str(error))
        log.info(
            "trial passed",
            extra={"latency_ms": result.latency_ms, "difference": result.difference},
        )
        return Done()

    def _commit(self, release: Release) -> Event:
        self.slots.switch(release.digest)
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.slots.collect()
        return Done()

    def _roll_back(self, digest: str, *, quarantine: bool) -> Event:
        if quarantine:
            self.journal.quarantine(digest, self.journal.load().reason)
        else:
            self.journal.set_fact("rolled-back", self.journal.load().rollout)
        self.slots.go_back(digest)
        self.slots.collect()
        shutil.rmtree(self.downloads, ignore_errors=True)
        return Done()

    def _report(self, effect: Report) -> Event:
        self.journal.queue(
            f"attempt/{effect.attempt}",
            outcome=effect.outcome.value,
            rollout=effect.rollout,
            release=effect.release,
            running=running_artifact(self.slots),
            reason=effect.reason,
            at=canonical.to_time(self.now()),
        )
        return Done()

    def _manifest(self, digest: str) -> Release:
        """Return the manifest that was accepted at the preflight, or is in the slot."""
        if staged := self.slots.manifest(digest):
            return staged
        try:
            data = (self.downloads / f"{digest}.json").read_bytes()
        except OSError as error:
            raise RefusedError(f"the manifest of {digest[:12]} is gone: {error}") from error
        if canonical.digest(data) != digest:
            raise RefusedError(f"the manifest of {digest[:12]} was changed on this device")
        return Release.from_bytes(data)


def running_artifact(slots: Slots) -> str:
    """Return the digest of the artifact that runs; "" for none."""
    release = slots.manifest(slots.running())
    return release.artifact.digest if release else ""

"""Carries out what the device machine owes: fetch, verify, stage, try, commit, roll back, report.

Each effect may be repeated after a power cut and then changes nothing. What only needs time (no
network, told to stop) is postponed and stays owed. What needs somebody (a full disk, a source that
lies) fails the attempt and is reported; the device tries again later, from what it already has.
"""

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, assert_never

from wildflower.client.config import AgentConfig
from wildflower.client.delta_fetch import DeltaFetch, Files
from wildflower.client.self_report import measure_self
from wildflower.client.spending import counted
from wildflower.ota import canonical
from wildflower.ota.device import decision
from wildflower.ota.device.decision import Standing
from wildflower.ota.device.effects import (
    Commit,
    Confirm,
    Discard,
    Effect,
    Fetch,
    Qualify,
    Quarantine,
    Report,
    RollBack,
    Stage,
    Switch,
    Try,
    Verify,
    Watch,
)
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Done, Event, Failed, Switched
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots, check_file, storage_error
from wildflower.ota.device.trial import run_trial
from wildflower.ota.errors import (
    BudgetError,
    FetchError,
    PostponedError,
    RefusedError,
    StorageError,
    TrialError,
)
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.files import make_directory, sync_directory
from wildflower.ota.release.manifest import FileEntry, Release
from wildflower.ota.rollout.document import RolloutDocument

log = logging.getLogger(__name__)


class Releases(Files, Protocol):
    """What the fetcher needs of `ota.release.fetch.ReleaseClient`."""

    def refresh(self) -> None:
        """Look for news; what follows is answered from the state that is verified now."""
        ...

    def rollout(self, target_group: str) -> RolloutDocument | None:
        """Return what the group's devices shall do; None if nothing was ever rolled out to it."""
        ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Runs effects on one device.

    Attributes:
        config: The device's settings.
        journal: Its memory.
        slots: Its slots.
        releases: Its way to releases.
        standing: Tells where it stands.
        watch: Looks after a release on probation.
        now: Its clock.
        should_stop: Whether the agent is told to end.
        deltas: Whether a model file may be made from what runs and a delta.
        why_wait: Tells why a whole model file, or anything else, is not fetched now; "" if it may.
    """

    config: AgentConfig
    journal: Journal
    slots: Slots
    releases: Releases
    standing: Callable[[], Standing]
    watch: Callable[[Watch], Event]
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    deltas: bool = True
    why_wait: Callable[[bool], str] = lambda _: ""

    @property
    def downloads(self) -> Path:
        """Where files lie by digest until they are staged, part files among them."""
        return self.config.directory / "downloads"

    def received(self) -> int:
        """Return the bytes that lie in downloads and half-built slots: progress, when they grow."""
        found = [*self.downloads.glob("*"), *self.slots.root.glob(".*.partial/*")]
        return sum(path.lstat().st_size for path in found if path.is_file())

    def run(self, effect: Effect) -> Event:
        """Carry out one effect and say what came of it.

        Raises:
            PostponedError: It cannot go on now.
            StorageError: It must not fail, and cannot be done while the disk is as it is.
        """
        try:
            return self._run(effect)
        except BudgetError as error:
            return Failed(Outcome.FAILED, f"{error}. {error.hint}")
        except FetchError as error:
            log.warning("update waits: %s", error, extra={"effect": type(effect).__name__})
            raise PostponedError(str(error)) from error
        except RefusedError as error:
            return Failed(Outcome.REFUSED, str(error))
        except StorageError as error:
            if isinstance(effect, Qualify | Fetch | Verify | Stage | Confirm | Switch):
                return Failed(Outcome.FAILED, ". ".join(filter(None, (str(error), error.hint))))
            raise

    def _run(self, effect: Effect) -> Event:
        match effect:
            case Qualify(release):
                return self._qualify(release)
            case Fetch(release):
                return self._fetch(release)
            case Verify(release):
                return self._verify(release)
            case Stage(release):
                return self._stage(release)
            case Confirm(release):
                return self._confirm(release)
            case Try() | Switch() | Watch():
                return self._prove(effect)
            case _:
                self._conclude(effect)
                return Done()

    def _prove(self, effect: Try | Switch | Watch) -> Event:
        """Carry out one of the effects by which a release shows what it is."""
        match effect:
            case Try(release):
                return self._try(release)
            case Switch(release):
                return self._switch(release)
            case Watch():
                return self.watch(effect)
            case _:
                assert_never(effect)

    def _conclude(self, effect: Commit | Quarantine | RollBack | Discard | Report) -> None:
        """Carry out one of the effects that cannot fail, only wait for a disk."""
        match effect:
            case Commit(release):
                self._commit(release)
            case Quarantine(release, reason):
                self.journal.quarantine(release.digest, reason)
            case RollBack(release):
                self.slots.go_back(release.digest)
                self._clean()
            case Discard(release):
                self.slots.discard(release.digest)
                self._clean()
            case Report():
                self._report(effect)
            case _:
                assert_never(effect)

    def _qualify(self, release: Release) -> Event:
        report = measure_self(self.config.directory, claimed_flags=self.config.cpu_flags)
        failed = decision.qualify(release, self.standing(), report)
        return failed or Done()

    def _fetch(self, release: Release) -> Event:
        try:
            make_directory(self.downloads)
        except OSError as error:
            raise storage_error(error, self.downloads) from error
        lengths = sum(entry.length for entry in release.files)
        self.slots.require_space(max(0, 2 * lengths - self.received()))  # downloads and the slot
        attempt = str(self.journal.load().attempt)
        with counted(self.journal, "spent", attempt, lengths) as budget:
            if self.deltas and not self.why_wait(False):
                self._delta_fetch().run(release, budget)
            for entry in release.files:
                target = self.downloads / entry.digest
                if not target.exists():
                    self._fetch_whole(entry, target, budget)
        return Done()

    def _fetch_whole(self, entry: FileEntry, target: Path, budget: ByteBudget) -> None:
        is_model = entry.role == "model"
        if why := self.why_wait(is_model):
            raise PostponedError(why)
        self.releases.fetch(entry, target, should_stop=self._pause(is_model), budget=budget)

    def _pause(self, is_model: bool) -> Callable[[], bool]:
        """Return what is asked between chunks: an owner's rule may begin to apply in mid-file."""
        return lambda: self.should_stop() or bool(self.why_wait(is_model))

    def _delta_fetch(self) -> DeltaFetch:
        return DeltaFetch(
            journal=self.journal,
            slots=self.slots,
            files=self.releases,
            downloads=self.downloads,
            now=self.now,
            should_stop=self._pause(is_model=False),
        )

    def _verify(self, release: Release) -> Event:
        for entry in release.files:
            path = self.downloads / entry.digest
            try:
                check_file(path, entry)
            except RefusedError as error:  # it was right when it came: the disk is to blame
                path.unlink(missing_ok=True)
                return Failed(Outcome.FAILED, f"changed on this device: {error}")
        return Done()

    def _stage(self, release: Release) -> Event:
        files = {entry.name: self.downloads / entry.digest for entry in release.files}
        try:
            self.slots.require_space(sum(entry.length for entry in release.files))
            self.slots.stage(release, files)
        except RefusedError as error:
            return Failed(Outcome.FAILED, f"changed on this device: {error}")
        return Done()

    def _confirm(self, release: Release) -> Event:
        """Look once more: what took days to fetch may have been withdrawn since."""
        self.releases.refresh()
        document = self.releases.rollout(release.target_group)
        news = decision.reconsider(self.journal.load(), document, self.config.device_id, self.now())
        return news or Done()

    def _try(self, release: Release) -> Event:
        slot = self.slots.path(release.digest)
        model, golden = slot / release.artifact.name, slot / release.file("golden").name
        try:
            result = run_trial(model, golden, release.trial, should_stop=self.should_stop)
        except TrialError as error:
            return Failed(Outcome.ROLLED_BACK, str(error))
        log.info(
            "trial passed",
            extra={
                "difference": round(result.difference, 6),
                "agreement": round(result.agreement, 4),
                "latency_ms": round(result.latency_ms, 3),
                "rss_bytes": result.rss_bytes,
            },
        )
        return Done()

    def _switch(self, release: Release) -> Event:
        self.slots.switch(release.digest)
        self._clean()
        return Switched(self.now())

    def _commit(self, release: Release) -> None:
        self.slots.switch(release.digest)  # already done, but by an agent before probations
        self.journal.raise_order(release.target_group, release.order)
        self.journal.forget_setbacks(release.digest)

    def _report(self, effect: Report) -> None:
        release = effect.release.digest
        if effect.outcome in (Outcome.FAILED, Outcome.REFUSED, Outcome.INCOMPATIBLE):
            self.journal.set_back(release, effect.attempt, self.now())
        self.journal.queue(
            _report_key(effect),
            effect.outcome,
            rollout=effect.rollout,
            release=release,
            running=running_artifact(self.slots),
            reason=effect.reason,
            at=self.now(),
        )

    def _clean(self) -> None:
        """Remove downloads and every slot that no pointer names."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        with suppress(OSError):  # or a power cut brings them back, and nobody would miss the space
            sync_directory(self.config.directory)
        self.slots.collect()


def _report_key(effect: Report) -> str:
    """Return what makes two reports one: what is not for this device is told once, not daily."""
    if effect.outcome not in (Outcome.REFUSED, Outcome.INCOMPATIBLE):
        return f"attempt/{effect.attempt}"
    said = f"{effect.rollout} {effect.release.digest} {effect.outcome} {effect.reason}"
    return f"not-for-us/{canonical.digest(said.encode())[:32]}"


def running_artifact(slots: Slots) -> str:
    """Return the digest of the artifact that runs; "" for none."""
    release = slots.manifest(slots.running())
    return release.artifact.digest if release else ""

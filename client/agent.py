"""The agent: one loop that listens to hints, looks for releases, reports, uploads, trains.

It decides nothing: `ota.device.decision` says what a rollout means, `ota.device.machine` what an
update owes, the policy file what is allowed. A hint only makes it look now instead of later, so
that a server that lies in hints gains nothing. What runs never waits for the network.
"""

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final

from wildflower.client.channel import Channel, Hint
from wildflower.client.config import AgentConfig
from wildflower.client.errors import ChannelError
from wildflower.client.fetcher import Fetcher, running_artifact
from wildflower.client.identity import Identity
from wildflower.client.policy import Policy
from wildflower.client.self_report import measure_self
from wildflower.client.spool import Spool
from wildflower.client.upload import upload_pending
from wildflower.ota import canonical
from wildflower.ota.device import shell
from wildflower.ota.device.decision import Standing, Wait, decide
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError, ReleaseError, StorageError
from wildflower.ota.release.fetch import ReleaseClient

log = logging.getLogger(__name__)

TRAINER: Final = "wildflower.client.trainer"
RECONNECT_S: Final = 5.0
"""Longest wait before the channel is opened again; each wait is drawn from [0, this]."""


@dataclass(slots=True)
class Due:
    """When something that recurs is due next, in seconds of a monotonic clock."""

    every_s: float
    next_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether it is due; if so it is due again after its period."""
        if now_s < self.next_s:
            return False
        self.next_s = now_s + self.every_s
        return True


@dataclass(slots=True)
class Agent:
    """One device's agent, wired in `client.daemon`.

    Attributes:
        config: The device's settings.
        policy: What it allows.
        identity: Who it is.
        channel: Its way to the server.
        journal: Its memory.
        slots: Its slots.
        releases: Its way to releases.
        spool: Summaries that wait for upload.
        now: Its clock, never earlier than a signed time it has seen.
        stop: Set when it shall end.
        random: For jitter alone.
    """

    config: AgentConfig
    policy: Policy
    identity: Identity
    channel: Channel
    journal: Journal
    slots: Slots
    releases: ReleaseClient
    spool: Spool
    now: Callable[[], datetime]
    stop: threading.Event
    random: Random
    hints: "queue.Queue[Hint]" = field(default_factory=queue.Queue)
    trainer: "subprocess.Popen[bytes] | None" = None
    told: int = 0

    def run(self) -> None:
        """Work until told to stop."""
        watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        watcher.start()
        poll, upload = Due(self.config.poll_s), Due(self.config.upload_s)
        self._guarded(self._wake)
        while not self.stop.is_set():
            now_s = time.monotonic()
            if poll.is_due(now_s):
                self._guarded(self._check_in)
                self._guarded(self.update)
            if upload.is_due(now_s):
                self._guarded(lambda: upload_pending(self.spool, self.channel))
            self._guarded(self.send_reports)
            self.write_status()
            self._follow(self._next_hint(min(poll.next_s, upload.next_s)), poll)
        self.channel.close()
        self._end_trainer()

    def update(self) -> None:
        """Look at the rollout of this device's target group and do what it means here.

        Raises:
            ReleaseError: What is served cannot be had or trusted now; told and tried again.
            StorageError: The disk is full, read-only or broken.
        """
        fetcher = self._fetcher()
        try:
            if self.journal.load().phase is not Phase.IDLE:
                shell.resume(self.journal, fetcher.run)
                return
            self.releases.refresh()
            self.journal.set_fact("seen-time", canonical.to_time(self.now()))
            document = self.releases.rollout(self.config.target_group)
            if document is None:
                return
            release = self.releases.release(document.release_path)
            verdict = decide(document, release, self.standing(), self.now())
            if isinstance(verdict, Wait):
                log.debug("no update: %s", verdict.reason)
                return
            shell.handle(self.journal, fetcher.run, verdict)
        except shell.InterruptedUpdateError:
            return
        finally:
            self.queue_refusals()

    def standing(self) -> Standing:
        """Return what this device is, for a decision."""
        running = self.slots.running()
        manifest = self.slots.manifest(running)
        return Standing(
            device_id=self.config.device_id,
            target_group=self.config.target_group,
            release=running,
            order=manifest.order if manifest else 0,
            quarantined=frozenset(self.journal.quarantined()),
            roles=self.policy.release,
            last_rolled_back=self.journal.fact("rolled-back"),
        )

    def queue_refusals(self) -> None:
        """Queue a report for each thing that a source served and this device refused."""
        new = self.releases.refusals[self.told :]
        self.told = len(self.releases.refusals)
        for refusal in new:
            reason = f"{refusal.source} served {refusal.target}: {refusal.reason}"
            queued = self.journal.queue(
                f"refusal/{canonical.digest(reason.encode())}",
                outcome=Outcome.REFUSED.value,
                rollout="",
                release="",
                running=running_artifact(self.slots),
                reason=reason,
                at=canonical.to_time(self.now()),
            )
            if queued:
                log.warning("refused: %s", reason)

    def send_reports(self) -> None:
        """Deliver the reports that are still to be sent, in order.

        Raises:
            ChannelError: The server cannot be reached now; the rest stays queued.
        """
        for entry in self.journal.reports(unsent=True):
            document = DeviceReport(
                device_id=self.config.device_id,
                sequence=entry.sequence,
                outcome=Outcome(entry.outcome),
                rollout=entry.rollout,
                release=entry.release,
                running=entry.running,
                reason=entry.reason,
                at=canonical.from_time(entry.at),
            ).to_bytes()
            self.channel.report(document, self.identity.sign(document))
            self.journal.mark_sent(entry.sequence)

    def write_status(self) -> None:
        """Write what `wildflower agent status` shows, atomically."""
        state, manifest = self.journal.load(), self.slots.manifest(self.slots.running())
        status = {
            "device_id": self.config.device_id,
            "phase": state.phase.value,
            "updating_to": state.release,
            "release": self.slots.running(),
            "order": manifest.order if manifest else 0,
            "artifact": manifest.artifact.digest if manifest else "",
            "training": self.trainer is not None and self.trainer.poll() is None,
            "at": canonical.to_time(self.now()),
        }
        target = self.config.directory / "agent.status.json"
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(status))
        partial.replace(target)

    def _wake(self) -> None:
        try:
            shell.wake(self.journal, self._fetcher().run)
        except shell.InterruptedUpdateError:
            log.info("an update waits for better times")

    def _fetcher(self) -> Fetcher:
        return Fetcher(
            config=self.config,
            journal=self.journal,
            slots=self.slots,
            releases=self.releases,
            now=self.now,
            should_stop=self.stop.is_set,
            tell_refusals=self.queue_refusals,
        )

    def _check_in(self) -> None:
        report = measure_self(
            self.config.directory,
            claimed_flags=self.config.cpu_flags,
            wanted_class=self.config.device_class,
        )
        if self.channel.check_in(report.to_bytes()).training:
            self._train()

    def _follow(self, hint: Hint | None, poll: Due) -> None:
        if hint is Hint.TRAINING:
            self._train()
        elif hint is Hint.RELEASE:
            poll.next_s = 0.0

    def _next_hint(self, until_s: float) -> Hint | None:
        try:
            return self.hints.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            return None

    def _train(self) -> None:
        """Start the training process unless one runs; it ends by itself."""
        if not self.config.app or (self.trainer is not None and self.trainer.poll() is None):
            return
        command = [sys.executable, "-m", TRAINER, "--dir", str(self.config.directory)]
        self.trainer = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        log.info("training process started", extra={"pid": self.trainer.pid})

    def _end_trainer(self) -> None:
        if self.trainer is not None and self.trainer.poll() is None:
            self.trainer.terminate()
            try:
                self.trainer.wait(2.0)
            except subprocess.TimeoutExpired:
                self.trainer.kill()
                self.trainer.wait()

    def _watch(self) -> None:
        while not self.stop.is_set():
            try:
                for hint in self.channel.watch():
                    self.hints.put(hint)
            except ChannelError as error:
                log.info("channel lost: %s", error)
            self.stop.wait(self.random.uniform(0.0, RECONNECT_S))

    def _guarded(self, work: Callable[[], object]) -> None:
        """Run one piece of work; what cannot be done now is told and tried again later."""
        try:
            work()
        except (ChannelError, ReleaseError, FormatError, StorageError) as error:
            log.warning("%s: %s", type(error).__name__, error)


def status_of(directory: Path) -> dict[str, str | int | bool]:
    """Return what the agent last wrote about itself; {} if it never did."""
    try:
        found = json.loads((directory / "agent.status.json").read_text())
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}

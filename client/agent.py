"""The agent: one loop that listens to hints, looks for releases, reports, uploads, trains.

A hint only makes it look now instead of later, so that a server that lies in hints gains nothing.
What cannot be done now is told in one line and tried again; what runs never waits for the network.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final, Protocol

from wildflower.client.channel import Channel, Hint
from wildflower.client.config import AgentConfig
from wildflower.client.errors import ChannelError, ConfigError
from wildflower.client.history import PHASES
from wildflower.client.hold import Holds
from wildflower.client.identity import Identity
from wildflower.client.notify import Notifier
from wildflower.client.owner import load_owner
from wildflower.client.self_report import measure_self
from wildflower.client.spool import Spool
from wildflower.client.training_child import TrainingProcess
from wildflower.client.updates import Updates
from wildflower.client.upload import upload_pending
from wildflower.ota import canonical
from wildflower.ota.device.journal import Entry
from wildflower.ota.device.profile import MAX_HOLDS
from wildflower.ota.device.report import DeviceReport
from wildflower.ota.errors import OtaError

log = logging.getLogger(__name__)

STATUS: Final = "agent.status.json"
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Bound of the wait before the channel is opened again; it doubles with every failure."""
RETRY_S: Final = 5.0
"""What could not be delivered is tried again within this, and not before half of it."""
MAX_HOLD: Final = 300  # characters of one of them in a check-in
GLANCE_S: Final = 0.5
"""How often the agent looks at a training process that runs, or at who holds the model."""


class Stop(Protocol):
    """Whether the agent is told to end; what `threading.Event` offers."""

    def is_set(self) -> bool:
        """Whether it is."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait for seconds, or until it is told to end; return whether it is."""
        ...


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

    def bring_forward(self, to_s: float) -> None:
        """Make it due at a time at the latest."""
        self.next_s = min(self.next_s, to_s)


@dataclass(slots=True)
class Agent:
    """One device's agent, wired in `client.daemon`.

    Attributes:
        config: The device's settings.
        identity: Who it is.
        channel: Its way to the server.
        updates: Its releases.
        spool: Summaries that wait for upload.
        training: Its training process.
        now: Its clock, never earlier than a time at which signed metadata was fresh.
        stop: Set when it shall end.
        random: For jitter alone.
        notifier: Its line to the service manager.
        hints: What the server hinted at and the loop has not seen yet.
    """

    config: AgentConfig
    identity: Identity
    channel: Channel
    updates: Updates
    spool: Spool
    training: TrainingProcess
    now: Callable[[], datetime]
    stop: Stop
    random: Random
    notifier: Notifier = field(default_factory=Notifier)
    hints: "queue.SimpleQueue[Hint]" = field(default_factory=queue.SimpleQueue)

    def run(self) -> None:
        """Work until told to stop."""
        watcher = threading.Thread(target=self.watch, name="watch", daemon=True)
        watcher.start()
        config = self.config
        poll, check_in, upload = Due(config.poll_s), Due(config.poll_s), Due(config.upload_s)
        self.notifier.ready()
        self._guarded(self.updates.begin)
        while not self.stop.is_set():
            self.notifier.beat()
            now_s = time.monotonic()
            self.training.tend()
            if check_in.is_due(now_s):
                self._guarded(lambda: self._check_in(check_in))
            if poll.is_due(now_s):
                self._guarded(self.updates.look)
            elif self.updates.lock.is_held:
                self._guarded(self.updates.go_on)
            is_told = self._guarded(self.send_reports)
            if upload.is_due(now_s) and not self._guarded(self._upload):
                upload.bring_forward(self._retry_at())
            self._guarded(self.write_status)
            until_s = min(poll.next_s, upload.next_s, check_in.next_s)
            until_s = until_s if is_told else min(until_s, self._retry_at())
            self._follow(self._next_hint(until_s), poll)
        self._guarded(self.updates.end)

    def send_reports(self) -> None:
        """Deliver the reports that are still to be sent, in order.

        Raises:
            ChannelError: The server cannot be reached now; the rest stays queued.
            StorageError: The journal cannot be written; what was sent is sent again.
        """
        for entry in self.updates.journal.reports(unsent=True):
            document = report_of(self.config.device_id, entry).to_bytes()
            self.channel.report(document, self.identity.sign(document))
            self.updates.journal.mark_sent(entry.sequence)
            log.info("reported", extra={"sequence": entry.sequence, "outcome": entry.outcome.value})

    def write_status(self) -> None:
        """Write what `wildflower agent status` shows, atomically."""
        state, slots = self.updates.journal.load(), self.updates.slots
        manifest = slots.manifest(slots.running())
        status = {
            "phase": state.phase.value,
            "updating_to": state.digest,
            "target_group": self.updates.group,
            "release": slots.running(),
            "order": manifest.order if manifest else 0,
            "artifact": manifest.artifact.digest if manifest else "",
            "damaged": bool(self.updates.damaged),
            "training": self.training.is_running,
            "waiting": "; ".join(self.updates.lock.waiting),
            "at": canonical.to_time(self.now()),
        }
        doing = f"{PHASES[state.phase]} {state.digest[:12]}".rstrip()
        self.notifier.status(f"{doing}, runs {slots.running()[:12] or 'nothing'}")
        target = self.config.directory / STATUS
        partial = target.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(status))
            partial.replace(target)
        except OSError as error:
            log.warning("status not written: %s", error)

    def watch(self) -> None:
        """Listen to hints, in a thread of its own; open the channel again whenever it is lost."""
        failures = 0
        while not self.stop.is_set():
            try:
                for hint in self.channel.watch():
                    failures = 0
                    self.hints.put(hint)
            except ChannelError as error:
                log.info("channel lost: %s", error)
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 10))
            failures += 1
            self.stop.wait(self.random.uniform(0.0, wait_s))  # full jitter: no herd at a restart

    def _check_in(self, due: Due) -> None:
        report = measure_self(
            self.config.directory,
            claimed_flags=self.config.cpu_flags,
            wanted_class=self.config.device_class,
        )
        told = self.channel.check_in(replace(report, holds=self._holds()).to_bytes())
        due.every_s = max(self.config.poll_s, float(told.next_s))
        if told.training:
            self._invite()

    def _holds(self) -> tuple[str, ...]:
        """Return who keeps new releases out, each in a sentence."""
        owner = load_owner(self.config.directory)
        decided = [f"paused: {owner.paused}"] if owner.paused else []
        decided += [f"pinned to {owner.pinned[:12]}"] if owner.pinned else []
        held = [str(hold)[:MAX_HOLD] for hold in Holds(self.config.directory).standing()]
        return (*decided, *held)[:MAX_HOLDS]

    def _upload(self) -> None:
        upload_pending(self.spool, self.channel)

    def _retry_at(self) -> float:
        return time.monotonic() + self.random.uniform(RETRY_S / 2, RETRY_S)

    def _follow(self, hint: Hint | None, poll: Due) -> None:
        if hint is Hint.TRAINING:
            self._invite()
        elif hint is Hint.RELEASE:
            poll.bring_forward(0.0)

    def _next_hint(self, until_s: float) -> Hint | None:
        wait_s = max(0.0, until_s - time.monotonic())
        if self.training.is_running or self.updates.lock.is_held:
            wait_s = min(wait_s, GLANCE_S)
        wait_s = min(wait_s, self.notifier.longest_wait_s)
        try:
            return self.hints.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _invite(self) -> None:
        if self.config.app:
            self.training.invite()

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Do one piece of work; tell what cannot be done now; return whether it was done."""
        try:
            work()
        except (ChannelError, ConfigError, OtaError) as error:
            if not self.stop.is_set():
                advice = error.hint or "It is tried again by itself."
                log.warning("%s: %s. What runs goes on. %s", type(error).__name__, error, advice)
            return False
        return True


def report_of(device_id: str, entry: Entry) -> DeviceReport:
    """Return the report that a journal's entry stands for; always the same bytes."""
    return DeviceReport(
        device_id=device_id,
        sequence=entry.sequence,
        outcome=entry.outcome,
        rollout=entry.rollout,
        release=entry.release,
        running=entry.running,
        reason=entry.reason,
        at=entry.at,
    )


def status_of(directory: Path) -> dict[str, str | int | bool]:
    """Return what the agent last wrote about itself; {} if it never did."""
    try:
        found = json.loads((directory / STATUS).read_text())
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}

"""Reads what `client.doctor` judges: a device's own files, and its sources if it is asked to.

It changes nothing and works beside a running agent, without one, and offline. What it cannot read
becomes a check that failed, so that one broken file does not hide the others.
"""

import fcntl
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from wildflower.client import doctor
from wildflower.client.acceptance import rejection_of
from wildflower.client.agent import status_of
from wildflower.client.config import AgentConfig, load_config
from wildflower.client.errors import ClientError
from wildflower.client.health import healthy_seconds
from wildflower.client.hold import Holds
from wildflower.client.identity import Identity
from wildflower.client.owner import load_owner
from wildflower.client.policy import load_policy
from wildflower.client.power import METERED_VARIABLE, Senses
from wildflower.client.spool import Spool
from wildflower.doctor import Check, Diagnosis, State
from wildflower.ota import canonical
from wildflower.ota.device.acceptance import Demands
from wildflower.ota.device.conditions import Conditions, decide
from wildflower.ota.device.journal import Journal, glance
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError, OtaError

ONLINE_S: Final = 10.0
"""Seconds that a source or the channel may take to answer."""
COUNTED: Final = 10_000  # summaries; more are told as that many


@dataclass(frozen=True, slots=True)
class Examination:
    """One device, looked at once.

    Attributes:
        directory: The device's directory.
        now: What the system says the time is.
    """

    directory: Path
    now: datetime

    def checks(self, *, online: bool) -> Iterator[Check]:
        """Look at everything, the network included if asked."""
        try:
            config = load_config(self.directory)
            policy = load_policy(self.directory)
            identity = Identity.load(self.directory)
        except ClientError as error:
            found = f"{error}; the agent does not start, what is installed answers all the same"
            yield Check("settings", State.FAIL, found, error.hint)
            return
        yield Check(
            "settings", State.OK, f"{config.name}, {config.device_class}, one enrolled device"
        )
        yield self._agent(config)
        yield from self._slots()
        yield from self._journal(policy.demands)
        yield doctor.check_holds(Holds(self.directory).standing())
        yield doctor.check_fetching(decide(policy.fetching, self._look(), self.now.astimezone()))
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        seen = self._seen()
        yield doctor.check_time(self.now, seen)
        yield doctor.check_certificate(
            certificate.not_valid_after_utc, max(self.now, seen or self.now)
        )
        if online:
            yield from self._sources(config, identity)
            yield check_channel(config.endpoints_channel, identity.ssl_context())

    def _look(self) -> Conditions:
        return Senses(metered_command=os.environ.get(METERED_VARIABLE, "")).look()

    def _agent(self, config: AgentConfig) -> Check:
        try:
            last_turn = canonical.from_time(str(status_of(self.directory).get("at", "")))
        except FormatError:
            last_turn = None
        return doctor.check_agent(
            is_running=is_held(self.directory / ".lock"),
            last_turn=last_turn,
            now=self.now,
            poll_s=config.poll_s,
        )

    def _slots(self) -> Iterator[Check]:
        if not (self.directory / "slots").is_dir():
            yield doctor.check_model("", None, is_intact=False, fallback="")
            yield doctor.check_space(shutil.disk_usage(self.directory).free, 0)
            yield doctor.check_owner(load_owner(self.directory), "")
            return
        slots = Slots(self.directory / "slots")
        running, before = slots.running(), slots.before()
        release, is_good = slots.manifest(running), is_intact(slots, before)
        yield doctor.check_model(
            running,
            release,
            is_intact=is_intact(slots, running),
            fallback=before if is_good else "",
        )
        yield doctor.check_fallback(before, is_intact=is_good)
        sizes = [sum(entry.length for entry in one.files) for one in slots.releases()]
        free = shutil.disk_usage(self.directory).free
        yield doctor.check_space(free, max(sizes, default=0))
        yield doctor.check_owner(load_owner(self.directory), running)

    def _journal(self, demands: Demands) -> Iterator[Check]:
        path = self.directory / "journal.db"
        if not path.exists():
            return
        try:
            with glance(path) as journal:
                yield from self._remembered(journal)
                yield doctor.check_acceptance(demands, rejection_of(journal), self.now)
        except OtaError as error:
            yield Check("journal", State.WARN, str(error), error.hint)

    def _seen(self) -> datetime | None:
        """Return when signed metadata was last found fresh; None for never, or nobody knows."""
        try:
            with glance(self.directory / "journal.db") as journal:
                return canonical.from_time(journal.fact("seen-time"))
        except OtaError:
            return None

    def _remembered(self, journal: Journal) -> Iterator[Check]:
        state = journal.load()
        waiting = [str(hold) for hold in Holds(self.directory).standing()]
        running = str(status_of(self.directory).get("release", ""))
        if why := load_owner(self.directory).obstacle(state.digest, running):
            waiting.append(why)
        yield doctor.check_update(
            state,
            journal.setbacks(),
            waiting,
            self.now,
            reasons={entry.release: entry.reason for entry in journal.reports() if entry.reason},
            healthy_s=healthy_seconds(journal, state.attempt),
        )
        yield doctor.check_quarantine(journal.quarantined())
        yield doctor.check_journal(has_damaged=(self.directory / "journal.damaged").exists())
        yield doctor.check_owed(len(journal.reports(unsent=True)), *self._summaries())

    def _summaries(self) -> tuple[int, int]:
        """Return how many summaries wait, and how many were given up."""
        if not (self.directory / "spool" / "stream").is_file():  # a spool would be made now
            return 0, 0
        spool = Spool(self.directory / "spool")
        return len(spool.pending(COUNTED)), spool.dropped

    def _sources(self, config: AgentConfig, identity: Identity) -> Iterator[Check]:
        for url in config.all_sources:
            yield check_source(url, identity, lambda: self.now)


def examine(directory: Path, now: datetime, *, online: bool = False) -> Diagnosis:
    """Look at a device and judge it.

    Args:
        directory: The device's directory.
        now: What the system says the time is.
        online: Whether to ask its sources and the channel, too.
    """
    return Diagnosis(tuple(Examination(directory, now).checks(online=online)))


def is_intact(slots: Slots, release: str) -> bool:
    """Whether every byte of a slot is what was signed."""
    manifest = slots.manifest(release) if release else None
    return manifest is not None and slots.is_complete(manifest)


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file, as a running agent does.

    For a moment this holds it itself, shared: an agent that starts in that very moment is started
    again by its supervisor.
    """
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_source(url: str, identity: Identity, now: Callable[[], datetime]) -> Check:
    """Verify all of a source's metadata, from the pinned root on, and throw it away.

    Args:
        url: Its base URL.
        identity: Whose root and certificate are used.
        now: Tells the moment that expiry is checked against.
    """
    import wildflower.client.lean  # noqa: F401  first: what follows imports httpx

    # isort: split
    from wildflower.ota.release.connection import Connection
    from wildflower.ota.release.fetch import ReleaseClient

    name, context = f"source {url}", identity.ssl_context()
    with tempfile.TemporaryDirectory() as empty:
        client = ReleaseClient(
            Path(empty),
            identity.root,
            (url,),
            lambda: Connection(context, timeout_s=ONLINE_S),
            now,
            wait=lambda _: None,
        )
        try:
            client.refresh()
        except OtaError as error:
            advice = error.hint or "What runs goes on; the agent asks the next source, and again."
            return Check(name, State.WARN, str(error), advice)
    return Check(name, State.OK, "answers, and what it serves is signed and fresh")


def check_channel(address: str, context: ssl.SSLContext) -> Check:
    """Open the device channel's TLS, with the device's certificate, and close it again.

    Args:
        address: Its `host:port`.
        context: Shows the certificate and trusts the pinned CA alone.
    """
    name = f"channel {address}"
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=ONLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")),
        ):
            return Check(name, State.OK, "answers with a certificate of the pinned CA")
    except (OSError, ValueError) as error:
        advice = (
            "What runs goes on, and releases do not need it; hints, reports, summaries and "
            "training wait. Is the server up, and this network open for its port?"
        )
        return Check(name, State.WARN, str(error), advice)

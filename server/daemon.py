"""`wildflower server up`: one process that is the server, and the children it supervises.

    python -m wildflower.server.daemon --dir SERVER

Everything is wired here and nowhere else. What is started ends in the opposite order: runners,
then listeners, then children, then the database.

    children     Flower's SuperLink (loopback)         the release signer (unix socket)
    listeners    enrolment  device HTTPS  device gRPC  operators
    runners      rounds     release line  rollouts     chores (fresh timestamp, node registration)

`server.status.json` says whether it is ready; a lock lets one server run in a directory at a time.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from wildflower import __version__
from wildflower.logs import LogFormat, configure_logging
from wildflower.ota.errors import OtaError
from wildflower.server import enrol, gateway, tokens
from wildflower.server.api.app import create_app
from wildflower.server.api.desk import Desk
from wildflower.server.api.views import InvitationView, ProcessView, StatusView
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build, run_worker
from wildflower.server.ca import Authority
from wildflower.server.channel import ChannelServer
from wildflower.server.children import children
from wildflower.server.cohort import Gathering
from wildflower.server.errors import ServerError
from wildflower.server.events import ObservedStore
from wildflower.server.flower_link import FlowerLink, superlink_environment
from wildflower.server.home import (
    claimed,
    listeners,
    operator_token,
    place_of,
    read_file,
    require_free_ports,
    status_file,
)
from wildflower.server.initial_model import make_initial
from wildflower.server.initialise import NOISE_KEY
from wildflower.server.line import LineRunner
from wildflower.server.listener import Listener, TlsFiles
from wildflower.server.presence import Presence
from wildflower.server.publish import Publisher
from wildflower.server.reception import Reception
from wildflower.server.records import Device
from wildflower.server.rollouts import RolloutRunner
from wildflower.server.round_trip import Parties, Peer
from wildflower.server.round_work import RoundTools
from wildflower.server.rounds import Learning, RoundRunner
from wildflower.server.settings import Settings, load_settings
from wildflower.server.sql import SqlStore
from wildflower.server.store import Store
from wildflower.server.supervise import Supervisor
from wildflower.wakeup import stopped_by_signals

log = logging.getLogger("wildflower.server.daemon")  # run as a module, its name is __main__

START_S: Final = 60.0  # a busy machine of two cores takes ten to start Flower
CHORES_S: Final = 30.0
REFRESH_EVERY: Final = timedelta(hours=6)  # a timestamp is good for a day


def utc_now() -> datetime:
    """Return the moment."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of one server, wired.

    Attributes:
        settings: Its settings.
        store: Its records; every change wakes who waits.
        blobs: Its files.
        authority: Its enrolment CA.
        presence: Who is connected.
        link: The way to Flower.
        publisher: The TUF repository's writer.
        supervisor: Its children.
        stopping: Set when it ends.
        ready: Set when all of it is up.
        started_at: When it started.
    """

    settings: Settings
    store: ObservedStore
    blobs: BlobStore
    authority: Authority
    presence: Presence
    link: FlowerLink
    publisher: Publisher
    supervisor: Supervisor
    stopping: threading.Event
    ready: threading.Event
    started_at: datetime

    @classmethod
    def of(cls, settings: Settings, store: Store, stopping: threading.Event) -> "Server":
        """Make the parts of a server; nothing is started.

        Raises:
            StartError: A file of its directory is missing or damaged.
        """
        home = settings.directory
        files = home / "superlink"
        link = FlowerLink(
            settings.superlink_address,
            read_file(files / "ca.pem"),
            read_file(files / "superexec.secret").strip(),
        )
        return cls(
            settings=settings,
            store=ObservedStore(store, utc_now),
            blobs=BlobStore(settings.blobs_path),
            authority=Authority.load(home / "ca"),
            presence=Presence(),
            link=link,
            publisher=Publisher(home, home / "signer" / "signer.sock", utc_now),
            supervisor=Supervisor(children(settings), home / "logs"),
            stopping=stopping,
            ready=threading.Event(),
            started_at=utc_now(),
        )

    def parties(self) -> Parties:
        """Return whom the rounds rely on."""
        settings = self.settings
        return Parties(
            ca_pem=self.authority.certificate_pem,
            noise_key=read_file(settings.directory / NOISE_KEY),
            helpers=tuple(map(Peer.parse, settings.helpers)),
            key_holder=Peer.parse(settings.key_holder) if settings.key_holder else None,
            key_holder_token=settings.directory / settings.key_holder_token,
        )

    def runners(self) -> tuple[RoundRunner, LineRunner, RolloutRunner]:
        """Make the runners."""
        bus, home = self.store.bus, self.settings.directory
        gathering = Gathering(self.store, self.presence, bus, self.stopping)
        tools = RoundTools(
            self.store,
            bus,
            self.blobs,
            gathering,
            self.parties(),
            utc_now,
            secrets.token_bytes,
        )
        worker = partial(run_worker, log_path=home / "logs" / "build.log", stopping=self.stopping)
        build = Build(home / "build", self.blobs, self.settings.proxy_data_path, worker)
        line = LineRunner(
            store=self.store,
            bus=bus,
            blobs=self.blobs,
            build=build,
            publisher=self.publisher,
            now=utc_now,
            stopping=self.stopping,
            probation_s=self.settings.probation_s,
        )
        rollouts = RolloutRunner(
            store=self.store,
            bus=bus,
            publisher=self.publisher,
            presence=self.presence,
            now=utc_now,
        )
        initial = partial(make_initial, stopping=self.stopping)
        rounds = RoundRunner(tools, self.link, learning(self.settings), initial)
        return rounds, line, rollouts

    def enrolment(self) -> enrol.Enrolment:
        """Make what decides who becomes a device."""
        settings = self.settings
        return enrol.Enrolment(
            self.store,
            self.authority,
            root=self.root,
            endpoints={"device": settings.device_url, "channel": settings.channel_address},
            register=self.link.register,
            now=utc_now,
            days=settings.device_certificate_days,
            model=settings.model_name,
        )

    @property
    def root(self) -> bytes:
        """The first TUF root, which devices pin."""
        return read_file(self.settings.directory / "tuf" / "metadata" / "1.root.json")

    def invite(self, ring: str, uses: int, expires_s: float) -> InvitationView:
        """Make a join token."""
        expires_at = utc_now() + timedelta(seconds=expires_s)
        invitation = tokens.Invitation.make(
            self.settings.enrol_url,
            self.authority.digest,
            hashlib.sha256(self.root).hexdigest(),
            entropy=secrets.token_bytes(32),
        )
        self.store.put(tokens.mint(invitation, ring=ring, uses=uses, expires_at=expires_at))
        return InvitationView(invitation.to_text(), ring, uses, expires_at)

    def status(self, training: Callable[[], str]) -> StatusView:
        """Return how the server is; `training` tells which one runs."""
        devices = [device for device in self.store.all(Device) if not device.revoked]
        latest = self.store.latest_event()
        return StatusView(
            ready=self.ready.is_set() and self.supervisor.is_ready,
            version=__version__,
            profile=self.settings.profile,
            started_at=self.started_at,
            listeners=listeners(self.settings),
            processes=[ProcessView(**asdict(one)) for one in self.supervisor.status()],
            devices=len(devices),
            connected=sum(self.presence.connected(device.device_id) for device in devices),
            training=training(),
            last_event=latest,
        )

    def tls(self, *, asks_clients: bool) -> TlsFiles:
        """Return who the server is, and whether clients are asked for a certificate."""
        home = self.settings.directory
        ca = home / "ca" / "ca.pem" if asks_clients else None
        return TlsFiles(home / "tls" / "server.key", home / "tls" / "server.pem", ca)


def run_server(
    directory: Path, stopping: threading.Event, *, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Be the server of a directory until `stopping` is set.

    Raises:
        SettingsError: `server.toml` has an error.
        StartError: Another server runs in the directory, a port is in use, or a child or the
            database does not start.
    """
    settings = load_settings(directory.absolute())
    settings.require_ports()
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(settings.directory))
        require_free_ports(settings)
        store = stack.enter_context(SqlStore.open(settings.database_url))
        server = Server.of(settings, store, stopping)
        stack.enter_context(server.supervisor)
        stack.callback(stopping.set)
        enrolment = server.enrolment()
        _serve(server, enrolment, stack)
        if stopping.is_set():
            return
        server.ready.set()
        stack.enter_context(status_file(settings, server.started_at))
        log.info("server is ready", extra={"operators": settings.operator_url})
        on_ready()
        _do_chores(server, enrolment)


def _serve(server: Server, enrolment: enrol.Enrolment, stack: contextlib.ExitStack) -> None:
    """Open the listeners and start the runners, in an order in which each finds what it needs."""
    rounds, line, rollouts = server.runners()
    desk = Desk(
        token=operator_token(server.settings.directory),
        store=server.store,
        bus=server.store.bus,
        files=server.blobs,
        presence=server.presence,
        rounds=rounds,
        line=line,
        rollouts=rollouts,
        publisher=server.publisher,
        invite=server.invite,
        status=lambda: server.status(lambda: _id_of(rounds)),
    )
    stack.enter_context(
        Listener(create_app(desk), place_of(server.settings, "operator_port"), None)
    )
    server.supervisor.wait_ready(START_S, give_up=server.stopping.is_set)
    if server.stopping.is_set():
        return
    fleet = gateway.Fleet(
        server.store,
        server.settings.superlink_address,
        server.settings.directory / "superlink" / "ca.pem",
    )
    devices = gateway.create_app(server.settings.directory / "tuf", server.blobs, fleet)
    reception = Reception(server.store, invited=rounds.invited, now=utc_now)
    enrolling = enrol.create_app(enrolment, now=utc_now)
    with_clients, without = server.tls(asks_clients=True), server.tls(asks_clients=False)
    stack.enter_context(Listener(devices, place_of(server.settings, "device_port"), with_clients))
    stack.enter_context(Listener(enrolling, place_of(server.settings, "enrol_port"), without))
    channel = ChannelServer(
        reception, server.presence, place_of(server.settings, "channel_port"), with_clients
    )
    stack.enter_context(channel)
    stack.callback(server.store.bus.close)
    for runner in (rounds, line, rollouts):
        stack.enter_context(runner)


def _do_chores(server: Server, enrolment: enrol.Enrolment) -> None:
    """Do what time asks for until the server ends; what fails is tried again."""
    next_refresh = utc_now()
    while True:
        try:
            enrolment.register_missing()
            if utc_now() >= next_refresh:
                server.publisher.refresh()
                next_refresh = utc_now() + REFRESH_EVERY
        except (ServerError, OtaError, OSError) as error:
            log.warning("chore failed: %s", error)
        if server.stopping.wait(CHORES_S):
            return


def learning(settings: Settings) -> Learning:
    """Return what a server learns."""
    app = settings.app
    is_path = bool(app) and (app.endswith(".py") or "/" in app)
    return Learning(
        app=str(settings.directory / app) if is_path else app,
        name=settings.model_name,
        settings={"quorum": settings.quorum, "deadline_s": settings.round_deadline_s},
    )


def _id_of(rounds: RoundRunner) -> str:
    active = rounds.active()
    return active.training_id if active else ""


def main() -> int:
    """Be the server; return the exit code."""
    parser = argparse.ArgumentParser(description="Run a Wildflower server.")
    parser.add_argument("--dir", type=Path, required=True, help="The server's directory.")
    parser.add_argument("--log-format", choices=list(LogFormat), default=LogFormat.TEXT)
    options = parser.parse_args()
    configure_logging(LogFormat(options.log_format), verbosity=1)
    os.environ.update(superlink_environment(options.dir.absolute()))
    try:
        with stopped_by_signals() as stopping:
            run_server(options.dir, stopping)
    except ServerError as error:
        log.error("%s  %s", error, error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

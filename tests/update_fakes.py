"""A device's updates with everything real but the clock, the waits and the agent's loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.client_fakes import LONG_AGO, FakeServer, today
from tests.device_fakes import Bundle, bundle

from wildflower.client.config import load_config
from wildflower.client.daemon import clock
from wildflower.client.identity import Identity
from wildflower.client.policy import Policy
from wildflower.client.updates import Updates
from wildflower.ota.device.journal import Entry, Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.ota.release.manifest import Release


@dataclass
class Kit:
    """One enrolled device, switched on and off at will.

    Attributes:
        directory: Where it lives.
        late: How much later its system's clock is than the real one.
        steady_s: What the clock says that nobody can set.
        stopped: Whether it is told to end.
        changes: What to change in its settings.
        policy: What its owner allows.
    """

    directory: Path
    late: timedelta = timedelta()
    steady_s: float = 0.0
    stopped: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=lambda: Policy(release=("auto", "approved")))

    def system(self) -> datetime:
        return today() + self.late

    @contextmanager
    def on(self, *, cleanly: bool = True) -> Iterator[Updates]:
        """Switch it on; it begins, and ends in good order or not."""
        with self.wired() as updates:
            updates.begin()
            yield updates
            if cleanly:
                updates.end()

    @contextmanager
    def wired(self) -> Iterator[Updates]:
        """Put everything together and take it apart again; nothing begins."""
        config = replace(load_config(self.directory), **self.changes)
        identity, slots = Identity.load(self.directory), Slots(self.directory / "slots")
        journal = Journal.open(
            self.directory / "journal.db", now=self.system(), is_first=not slots.running()
        )
        now = clock(journal, self.system)
        releases = ReleaseClient(
            self.directory / "tuf",
            identity.root,
            config.all_sources,
            lambda: Connection(identity.ssl_context(), timeout_s=10.0),
            now,
            wait=lambda _: None,
        )
        try:
            yield Updates(
                config=config,
                policy=self.policy,
                journal=journal,
                slots=slots,
                releases=releases,
                now=now,
                should_stop=lambda: self.stopped,
                steady=lambda: self.steady_s,
            )
        finally:
            journal.close()

    def look(self) -> list[Entry]:
        """Switch it on for one look; return the reports it has queued so far."""
        with self.on() as updates:
            updates.look()
            return updates.journal.reports()

    @property
    def running(self) -> str:
        return Slots(self.directory / "slots").running()

    def told(self) -> list[tuple[str, str]]:
        """Return what it has reported: outcomes and reasons."""
        journal = Journal.peek(self.directory / "journal.db")
        try:
            return [(entry.outcome.value, entry.reason) for entry in journal.reports()]
        finally:
            journal.close()


def offer(
    server: FakeServer,
    order: int,
    *,
    role: str = "auto",
    statement: Callable[[Release], bytes] = lambda _: b"",
    **changes: Any,
) -> Bundle:
    """Publish a release, with the statement that is made of it, and roll it out to everybody."""
    one = bundle(order, scale=float(order), **({"not_before": LONG_AGO} | changes))
    server.releases.publish(one, role=role, statement=statement(one.release))
    path = f"models/{role}/{one.release.target_group}/{order}.json"
    server.releases.roll_out(one, release_path=path)
    return one


def blobs_asked(server: FakeServer) -> int:
    """Return how often a file of a release was asked for."""
    return sum(path.startswith("/blobs/") for path in server.asked)

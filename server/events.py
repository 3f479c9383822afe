"""What happens on the server, in order: kinds of events, and the bus that wakes who waits.

An event is a record: it is stored in the transaction of what it tells of, and only then are those
who wait woken. Whoever missed a wake, or connects later, reads on from the number it saw last, so
that nothing is told twice or left out.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum, unique
from typing import TypeVar

from wildflower.server.records import Event, JoinToken, Record
from wildflower.server.store import Store

R = TypeVar("R", bound=Record)

Field = str | int | float | bool


@unique
class Kind(StrEnum):
    """Every kind of event."""

    DEVICE_ENROLLED = "device.enrolled"
    DEVICE_CONNECTED = "device.connected"
    DEVICE_DISCONNECTED = "device.disconnected"
    DEVICE_REPORT = "device.report"
    TRAINING_STARTED = "training.started"
    ROUND_STARTED = "round.started"
    ROUND_STAGE = "round.stage"
    ROUND_RECORDED = "round.recorded"
    ROUND_ABORTED = "round.aborted"
    TRAINING_FINISHED = "training.finished"
    TRAINING_ABORTED = "training.aborted"
    LINE_BUILT = "line.built"
    LINE_GATED = "line.gated"
    LINE_SIGNED = "line.signed"
    LINE_PUBLISHED = "line.published"
    LINE_FAILED = "line.failed"
    ROLLOUT_CREATED = "rollout.created"
    ROLLOUT_STAGE = "rollout.stage"
    ROLLOUT_DONE = "rollout.done"
    ROLLOUT_ABORTED = "rollout.aborted"


class EventBus:
    """Makes events, stores them, and wakes waiting threads and event loops.

    Args:
        store: Where events are kept.
        now: The clock.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._changed = threading.Condition()
        self._changes = 0
        self._bells: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self.closed = False

    def now(self) -> datetime:
        """Return the moment that an event made now would have."""
        return self._now()

    def close(self) -> None:
        """Send away those who follow events: the server ends."""
        self.closed = True
        self.ring()

    @property
    def changes(self) -> int:
        """How often the store has changed since the start; see `wait`."""
        return self._changes

    def make(self, kind: Kind, subject: str, **fields: Field) -> Event:
        """Return an event of this moment, to be stored with what it tells of."""
        return Event(0, kind.value, subject, fields, self._now())

    def emit(self, kind: Kind, subject: str, **fields: Field) -> None:
        """Store an event that comes with no record, and wake who waits."""
        self._store.put(events=[self.make(kind, subject, **fields)])
        self.ring()

    def ring(self) -> None:
        """Wake every waiting thread and event loop."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()
            bells = list(self._bells.items())
        for bell, loop in bells:
            with contextlib.suppress(RuntimeError):  # that loop is closing: nobody waits there
                loop.call_soon_threadsafe(bell.set)

    def wait(self, seen: int, timeout_s: float) -> int:
        """Wait in a thread until the store has changed.

        Args:
            seen: `changes` as it was before the caller last looked at the store; if it has
                changed since, there is nothing to wait for.
            timeout_s: Return after this long in any case.

        Returns:
            `changes` now, for the next call.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._changes == seen:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._changes

    @contextlib.contextmanager
    def bell(self) -> Iterator[asyncio.Event]:
        """Lend the running event loop an `asyncio.Event` that is set whenever the store changes."""
        bell = asyncio.Event()
        with self._changed:
            self._bells[bell] = asyncio.get_running_loop()
        try:
            yield bell
        finally:
            with self._changed:
                del self._bells[bell]


class ObservedStore:
    """A store whose every change rings the bus, whoever made it.

    Args:
        store: Where the records are.
        now: The clock of the bus.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._latest = 0  # of the events seen; asking on from here reads each event once
        self.bus = EventBus(store, now)

    def put(self, *records: Record, events: Sequence[Event] = ()) -> None:
        """Store, then ring."""
        self._store.put(*records, events=events)
        self.bus.ring()

    def add(self, *records: Record) -> list[str]:
        """Store what is new, then ring if anything was."""
        added = self._store.add(*records)
        if added:
            self.bus.ring()
        return added

    def get(self, kind: type[R], key: str) -> R | None:
        """Return what the store has."""
        return self._store.get(kind, key)

    def change(
        self, kind: type[R], key: str, *also: Record, events: Sequence[Event] = (), **fields: object
    ) -> R | None:
        """Change, then ring if there was something to change."""
        changed = self._store.change(kind, key, *also, events=events, **fields)
        if changed is not None:
            self.bus.ring()
        return changed

    def all(self, kind: type[R], **equal: object) -> list[R]:
        """Return what the store has."""
        return self._store.all(kind, **equal)

    def spend(self, token_id: str, now: datetime) -> JoinToken | None:
        """Take one use of a join token."""
        return self._store.spend(token_id, now)

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return what the store has."""
        return self._store.events(after, limit)

    def latest_event(self) -> int:
        """Return the number of the latest event, 0 if there is none."""
        while found := self._store.events(self._latest):
            self._latest = found[-1].number
        return self._latest

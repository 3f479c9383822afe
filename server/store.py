"""The server's memory, behind one small Protocol.

Implementations: `server.memory.MemoryStore` for tests and simulations, `server.sql.SqlStore` for
SQLite and PostgreSQL. One contract suite (`tests/contracts/test_store.py`) runs over all of them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from wildflower.server.records import Event, JoinToken, Record

R = TypeVar("R", bound=Record)


class Store(Protocol):
    """Where the server's records live. Safe to use from several threads."""

    def put(self, *records: Record, events: Sequence[Event] = ()) -> None:
        """Insert or replace records by key, and append events, atomically and durably.

        After a power cut either all of it is there or nothing. Events get consecutive numbers.
        """
        ...

    def add(self, *records: Record) -> list[str]:
        """Insert the records whose keys are new; return the keys that were, in order.

        A record whose key is known is left as it is stored: replays change nothing.
        """
        ...

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of a kind with this key, or None."""
        ...

    def change(
        self, kind: type[R], key: str, *also: Record, events: Sequence[Event] = (), **fields: object
    ) -> R | None:
        """Set some fields of one record, leaving its others; return what is stored now.

        Several threads change a device: one revokes it while another stores what it runs. With
        `put` the later would undo the earlier; here neither touches the other's fields. `also`
        and `events` are put in the same transaction. None, and nothing done, if there is no such
        record.
        """
        ...

    def all(self, kind: type[R], **equal: object) -> list[R]:
        """Return a kind's records whose fields equal what is given, in order of insertion."""
        ...

    def spend(self, token_id: str, now: datetime) -> JoinToken | None:
        """Take one use of a join token, atomically; None if unknown, used up or expired."""
        ...

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above `after`, in order."""
        ...

"""A store in the process's memory, for tests and simulations: nothing survives the process."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, cast

from wildflower.server.records import Event, JoinToken, Record

R = TypeVar("R", bound=Record)


class MemoryStore:
    """`server.store.Store` over dictionaries, one per kind of record."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[type, dict[str, Any]] = {}
        self._events: list[Event] = []

    def put(self, *records: Record, events: Sequence[Event] = ()) -> None:
        """Insert or replace records by key, and append events."""
        with self._lock:
            self._put(records, events)

    def add(self, *records: Record) -> list[str]:
        """Insert the records whose keys are new; return the keys that were, in order."""
        with self._lock:
            new = []
            for record in records:
                known = self._records.setdefault(type(record), {})
                if _key(record) not in known:
                    known[_key(record)] = record
                    new.append(_key(record))
            return new

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of a kind with this key, or None."""
        with self._lock:
            return cast("R | None", self._records.get(kind, {}).get(key))

    def change(
        self, kind: type[R], key: str, *also: Record, events: Sequence[Event] = (), **fields: object
    ) -> R | None:
        """Set some fields of one record, leaving its others; return what is stored now."""
        _check(kind, fields)
        with self._lock:
            found = self._records.get(kind, {}).get(key)
            if found is None:
                return None
            changed = replace(found, **fields)
            self._put((changed, *also), events)
            return cast("R", changed)

    def all(self, kind: type[R], **equal: object) -> list[R]:
        """Return a kind's records whose fields equal what is given, in order of insertion."""
        _check(kind, equal)
        with self._lock:
            found = list(self._records.get(kind, {}).values())
        return [
            record
            for record in found
            if all(getattr(record, name) == value for name, value in equal.items())
        ]

    def spend(self, token_id: str, now: datetime) -> JoinToken | None:
        """Take one use of a join token; None if unknown, used up or expired."""
        with self._lock:
            token = cast("JoinToken | None", self._records.get(JoinToken, {}).get(token_id))
            if token is None or token.uses_left < 1 or token.expires_at <= now:
                return None
            spent = replace(token, uses_left=token.uses_left - 1)
            self._put((spent,), ())
            return spent

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above `after`, in order."""
        with self._lock:
            return self._events[max(after, 0) :][:limit]

    def _put(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        for record in records:
            self._records.setdefault(type(record), {})[_key(record)] = record
        for event in events:
            self._events.append(replace(event, number=len(self._events) + 1))


def _key(record: Record) -> str:
    return cast("str", getattr(record, record.KEY))


def _check(kind: type[R], fields: dict[str, object]) -> None:
    unknown = set(fields) - set(cast("tuple[str, ...]", kind.__slots__))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")

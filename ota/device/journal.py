"""A device's memory of its updates: SQLite in its most careful mode.

One row holds the machine's state, one table the reports, the others what the device must not
forget: releases that failed their trial, releases to try again later, the highest order it
committed. Every write is on the disk when it returns (WAL with `synchronous=FULL`).

A journal that the disk has torn is set aside and begun anew: slots and their pointers say what
runs, and that is what counts (`recall_from`). Its report numbers go on from the time in seconds, so
that none is ever used twice: a server takes each number of a device once.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from wildflower.ota import canonical
from wildflower.ota.device.decision import Setback
from wildflower.ota.device.machine import State
from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import FormatError, StorageError
from wildflower.ota.release.manifest import Release

log = logging.getLogger(__name__)

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS reports (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    outcome TEXT NOT NULL,
    rollout TEXT NOT NULL,
    release TEXT NOT NULL,
    running TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS quarantine (release TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS setbacks (
    release TEXT PRIMARY KEY, count INTEGER NOT NULL, attempt INTEGER NOT NULL, at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (target_group TEXT PRIMARY KEY, highest INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""What says that a journal cannot be had now; every other error says that it is damaged."""
KEPT: Final = 1000
"""Reports that are kept after they were sent, for `wildflower agent status`."""
BUSY_S: Final = 10.0
"""How long a write waits for a reader, such as `wildflower agent status`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One report, as the journal keeps it.

    Attributes:
        sequence: Number of the report, rising.
        key: What it is about: the same thing is never reported twice.
        outcome: What became of the release.
        rollout: Id of the rollout; "" outside one.
        release: Digest of the release's manifest; "" where none could be verified.
        running: Digest of the artifact that ran then; "" for none.
        reason: Why it failed, or "".
        at: When.
        sent: Whether the server has acknowledged it.
    """

    sequence: int
    key: str
    outcome: Outcome
    rollout: str
    release: str
    running: str
    reason: str = field(repr=False)
    at: datetime
    sent: bool


class Journal:
    """The journal in one file. One process writes it, one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, *, is_new: bool = False) -> None:
        self._connection = connection
        self.is_new: Final = is_new
        """Whether it holds nothing yet: the device is new, or its journal was lost."""

    @classmethod
    def open(cls, path: Path, *, now: datetime, is_first: bool = True) -> Self:
        """Open the journal, or begin one; a damaged one is set aside.

        Args:
            path: The file.
            now: The device's time, where the report numbers of a journal after a lost one begin.
            is_first: Whether a missing journal means a device that never had one.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        is_new, start = not path.exists(), 0 if is_first else int(now.timestamp())
        try:
            connection = _checked(path)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: a message with noise
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
                raise StorageError(f"the journal {path} cannot be opened: {error}") from error
            _set_aside(path, error)
            is_new, start, connection = True, int(now.timestamp()), _checked(path)
        journal = cls(connection, is_new=is_new)
        if is_new:
            journal._write("INSERT INTO sqlite_sequence VALUES ('reports', ?)", start)
        return journal

    @classmethod
    def peek(cls, path: Path) -> Self:
        """Open an existing journal for reading alone, beside the agent that writes it.

        Raises:
            StorageError: There is none that can be read.
        """
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            connection.execute("SELECT 1 FROM state").fetchone()
        except sqlite3.Error as error:
            raise _unreadable(path, error) from error
        return cls(connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def recall_from(self, releases: Iterable[Release]) -> None:
        """Learn from the slots what a lost journal knew: how far each target group has come."""
        for release in releases:
            self.raise_order(release.target_group, release.order)

    def load(self) -> State:
        """Return the state last saved, or `State()` on a fresh device.

        A state that cannot be read means idle: what was under way is found again by its rollout.
        """
        row = self._connection.execute("SELECT state FROM state").fetchone()
        try:
            return State.from_bytes(bytes(row[0])) if row else State()
        except FormatError as error:
            log.error("stored state cannot be read, idle again: %s", error)
            return State(attempt=self._last_attempt())

    def save(self, state: State) -> None:
        """Save atomically: after a power cut `load` returns the old state or the new one.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write("INSERT OR REPLACE INTO state (one, state) VALUES (1, ?)", state.to_bytes())

    def queue(
        self,
        key: str,
        outcome: Outcome,
        *,
        rollout: str,
        release: str,
        running: str,
        reason: str,
        at: datetime,
    ) -> bool:
        """Queue a report unless one with this key was ever queued; return whether it was.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        row = (key, outcome.value, rollout, release, running, reason, canonical.to_time(at))
        added = self._write(
            "INSERT OR IGNORE INTO reports (key, outcome, rollout, release, running, reason, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            *row,
        )
        return added == 1

    def reports(self, *, unsent: bool = False) -> list[Entry]:
        """Return the reports in order; only those still to be sent, if asked."""
        rows = self._connection.execute(
            "SELECT sequence, key, outcome, rollout, release, running, reason, at, sent"
            " FROM reports WHERE sent < ? ORDER BY sequence",
            (1 if unsent else 2,),
        )
        return [entry for row in rows if (entry := _entry(row)) is not None]

    def mark_sent(self, sequence: int) -> None:
        """Remember that the server has a report; forget what was sent long ago.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write("UPDATE reports SET sent = 1 WHERE sequence = ?", sequence)
        self._write("DELETE FROM reports WHERE sent = 1 AND sequence <= ?", sequence - KEPT)

    def quarantine(self, release: str, reason: str) -> None:
        """Remember that a release failed its trial here; it is never tried again.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write("INSERT OR IGNORE INTO quarantine VALUES (?, ?)", release, reason)

    def quarantined(self) -> dict[str, str]:
        """Return the releases that failed their trial here, and why."""
        return dict(self._connection.execute("SELECT release, reason FROM quarantine"))

    def set_back(self, release: str, attempt: int, at: datetime) -> None:
        """Count that an attempt at a release failed, once for each attempt.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write(
            "INSERT INTO setbacks (release, count, attempt, at) VALUES (?, 1, ?, ?)"
            " ON CONFLICT (release) DO UPDATE SET"
            " count = count + 1, attempt = excluded.attempt, at = excluded.at"
            " WHERE attempt <> excluded.attempt",
            release,
            attempt,
            canonical.to_time(at),
        )

    def forget_setbacks(self, release: str) -> None:
        """Forget that a release once failed; it has been committed since.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write("DELETE FROM setbacks WHERE release = ?", release)

    def setbacks(self) -> Mapping[str, Setback]:
        """Return the releases that could not be installed, by digest."""
        rows = self._connection.execute("SELECT release, count, at FROM setbacks")
        found = {}
        for release, count, at in rows:
            with suppress(ValueError, TypeError, FormatError):  # a flipped bit: tried again now
                found[str(release)] = Setback(int(count), canonical.from_time(at))
        return found

    def raise_order(self, target_group: str, order: int) -> None:
        """Remember the highest order committed in a target group; a lower one changes nothing.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write(
            "INSERT INTO orders (target_group, highest) VALUES (?, ?)"
            " ON CONFLICT (target_group) DO UPDATE SET highest = max(highest, excluded.highest)",
            target_group,
            order,
        )

    def highest_order(self, target_group: str) -> int:
        """Return the highest order ever committed in a target group; 0 for none."""
        row = self._connection.execute(
            "SELECT highest FROM orders WHERE target_group = ?", (target_group,)
        ).fetchone()
        return int(row[0]) if row else 0

    def set_fact(self, name: str, value: str) -> None:
        """Remember a fact.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        self._write("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", name, value)

    def fact(self, name: str) -> str:
        """Return a fact, or ""."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def _last_attempt(self) -> int:
        keys = self._connection.execute("SELECT key FROM reports WHERE key LIKE 'attempt/%'")
        numbers = (str(key).partition("/")[2] for (key,) in keys)
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _write(self, statement: str, *values: str | int | bytes) -> int:
        """Run one statement durably; return how many rows it changed."""
        with _told(), self._connection:
            return self._connection.execute(statement, values).rowcount


def _entry(row: tuple[Any, ...]) -> Entry | None:
    """Return the report in a row; None, with a log line, if a flipped bit made it unreadable."""
    sequence, key, outcome, rollout, release, running, reason, at, sent = row
    try:
        return Entry(
            sequence=int(sequence),
            key=str(key),
            outcome=Outcome(outcome),
            rollout=str(rollout),
            release=str(release),
            running=str(running),
            reason=str(reason),
            at=canonical.from_time(at),
            sent=bool(sent),
        )
    except (ValueError, TypeError, FormatError) as error:
        log.error("a report cannot be read and is left out: %s", error)
        return None


@contextmanager
def glance(path: Path) -> Iterator[Journal]:
    """Look into an existing journal, beside the agent that writes it or without one.

    Raises:
        StorageError: There is none that can be read, to its end.
    """
    try:
        with closing(Journal.peek(path)) as journal:
            yield journal
    except sqlite3.Error as error:  # a page that the disk has torn, behind a head that is whole
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: sqlite3.Error) -> StorageError:
    return StorageError(
        f"the journal {path} cannot be read: {error}",
        hint="What runs goes on. The agent sets the journal aside when it starts, and goes on "
        "from the slots.",
    )


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            f"the journal cannot be written: {error}",
            hint="Is the disk full or read-only? What runs goes on running.",
        ) from error


def _checked(path: Path) -> sqlite3.Connection:
    """Connect, and read every page once: damage must show now, not in the middle of an update."""
    connection = sqlite3.connect(path, check_same_thread=False, timeout=BUSY_S)
    connection.text_factory = _text
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(SCHEMA)
        found = connection.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok" or _tables(connection) != _expected_tables():
            raise sqlite3.DatabaseError(f"found {found}, or other tables than expected")
    except BaseException:
        connection.close()
        raise
    return connection


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql <> '' ORDER BY name")
    return [(str(name), str(sql)) for name, sql in rows]


def _expected_tables() -> list[tuple[str, str]]:
    """Return the tables as SQLite writes them down: a flipped bit in there must not pass."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        return _tables(fresh)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")  # a flipped bit must not keep the agent from starting


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_suffix(".damaged")
    log.critical(
        "the journal is damaged; begun anew, what runs goes on running: %s",
        error,
        extra={"aside": str(aside)},
    )
    path.replace(aside)
    for rest in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + rest).unlink(missing_ok=True)

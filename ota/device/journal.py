"""A device's memory of its updates: SQLite in its most careful mode.

One row holds the machine's state, one table the reports that are still to be sent, one the
releases that failed here, one a few facts. Every write is on the disk when it returns
(`synchronous=FULL`). A journal that the disk has torn is set aside and begun anew: the slots and
their pointer say what runs, and that is what counts.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from wildflower.ota.device.machine import State
from wildflower.ota.errors import FormatError, StorageError

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
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
DAMAGED: Final = ("malformed", "not a database", "disk image")


@dataclass(frozen=True, slots=True)
class Entry:
    """One report, as the journal keeps it.

    Attributes:
        sequence: Counts the device's reports from 1.
        key: What it is about: the same thing is never reported twice.
        outcome: What became of the release.
        rollout: Id of the rollout.
        release: Digest of the release's manifest.
        running: Digest of the artifact that ran then.
        reason: Why it failed, or "".
        at: When, RFC 3339.
        sent: Whether the server has acknowledged it.
    """

    sequence: int
    key: str
    outcome: str
    rollout: str
    release: str
    running: str
    reason: str = field(repr=False)
    at: str
    sent: bool


class Journal:
    """The journal in one file; one process at a time writes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal, or begin one.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        try:
            return cls(_connect(path))
        except sqlite3.DatabaseError as error:
            if not any(word in str(error) for word in DAMAGED):
                raise StorageError(f"the journal {path} cannot be opened: {error}") from error
            aside = path.with_suffix(".damaged")
            log.exception("journal damaged, begun anew", extra={"aside": str(aside)})
            path.replace(aside)
            for rest in ("-wal", "-shm", "-journal"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            return cls(_connect(path))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def load(self) -> State:
        """Return the state last saved, or `State()` on a fresh device."""
        row = self._connection.execute("SELECT state FROM state").fetchone()
        try:
            return State.from_bytes(bytes(row[0])) if row else State()
        except FormatError as error:
            log.error("stored state is not readable, idle again: %s", error)
            return State()

    def save(self, state: State) -> None:
        """Save atomically: after a power cut `load` returns the old state or the new one.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO state (one, state) VALUES (1, ?)", (state.to_bytes(),)
            )

    def queue(
        self,
        key: str,
        *,
        outcome: str,
        rollout: str,
        release: str,
        running: str,
        reason: str,
        at: str,
    ) -> bool:
        """Queue a report unless one with this key was ever queued; return whether it was.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        row = (key, outcome, rollout, release, running, reason, at)
        with self._writing():
            added = self._connection.execute(
                "INSERT OR IGNORE INTO reports"
                " (key, outcome, rollout, release, running, reason, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return added.rowcount == 1

    def reports(self, *, unsent: bool = False) -> list[Entry]:
        """Return the reports in order; only those still to be sent, if asked."""
        rows = self._connection.execute(
            "SELECT sequence, key, outcome, rollout, release, running, reason, at, sent"
            " FROM reports WHERE sent < ? ORDER BY sequence",
            (1 if unsent else 2,),
        )
        return [Entry(*row[:8], bool(row[8])) for row in rows]

    def mark_sent(self, sequence: int) -> None:
        """Remember that the server has a report."""
        with self._writing():
            self._connection.execute("UPDATE reports SET sent = 1 WHERE sequence = ?", (sequence,))

    def quarantine(self, release: str, reason: str) -> None:
        """Remember that a release failed here; it is never tried again."""
        with self._writing():
            self._connection.execute(
                "INSERT OR IGNORE INTO quarantine (release, reason) VALUES (?, ?)",
                (release, reason),
            )

    def quarantined(self) -> dict[str, str]:
        """Return the releases that failed here, and why."""
        return dict(self._connection.execute("SELECT release, reason FROM quarantine"))

    def set_fact(self, name: str, value: str) -> None:
        """Remember a fact."""
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value)
            )

    def fact(self, name: str) -> str:
        """Return a fact, or ""."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._connection:
                yield
        except sqlite3.Error as error:
            raise StorageError(f"the journal cannot be written: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection

"""Where a device keeps its side of a secure-aggregation session until the session is over.

What is kept holds secrets: it is readable by its owner alone, and erased when the session ends.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from wildflower.strategies.errors import StoredStateError

KEEP_S: Final = 3600.0
"""A session that was not touched for so many seconds is over: no round lasts as long."""

_SAVED: Final = ".session"
_DRAFT: Final = ".draft"


class SessionStore(Protocol):
    """Session states by the session's id, 32 bytes; what they mean is not its business.

    An implementation keeps these promises: when `save` returns, `load` gives the new state even
    after a power cut, and a power cut during `save` leaves the old state or the new one.
    """

    def load(self, session: bytes) -> bytes | None:
        """Return the state last saved, None if there is none."""
        ...

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        """Save a state; see the class for what holds when this returns."""
        ...

    def erase(self, session: bytes) -> None:
        """Forget a session; one that is unknown is forgotten already."""
        ...

    def sessions(self) -> Iterator[tuple[bytes, datetime]]:
        """Yield each session's id and when it was last saved."""
        ...


def erase_all(store: SessionStore) -> None:
    """Forget every session: the training is over."""
    for session, _ in list(store.sessions()):
        store.erase(session)


def erase_obsolete(
    store: SessionStore, subject: str, subject_of: Callable[[bytes], str], *, now: datetime
) -> None:
    """Forget the sessions that a new one of a subject makes obsolete, old ones, and damaged ones.

    Args:
        store: Where they are.
        subject: What the new session belongs to, such as a training.
        subject_of: Returns what a stored state belongs to; StoredStateError if it is unreadable.
        now: The present, with a time zone.
    """
    for session, saved in list(store.sessions()):
        is_old = now - saved > timedelta(seconds=KEEP_S)
        if is_old or _is_obsolete(store.load(session), subject, subject_of):
            store.erase(session)


def _is_obsolete(state: bytes | None, subject: str, subject_of: Callable[[bytes], str]) -> bool:
    if state is None:
        return True
    try:
        return subject_of(state) == subject
    except StoredStateError:
        return True


class MemorySessions:
    """Sessions in memory, for simulations: its "power cuts" are the end of the process."""

    def __init__(self) -> None:
        self._states: dict[bytes, tuple[bytes, datetime]] = {}

    def load(self, session: bytes) -> bytes | None:
        """Return the state last saved, None if there is none."""
        found = self._states.get(session)
        return None if found is None else found[0]

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        """Save a state."""
        self._states[session] = state, now

    def erase(self, session: bytes) -> None:
        """Forget a session."""
        self._states.pop(session, None)

    def sessions(self) -> Iterator[tuple[bytes, datetime]]:
        """Yield each session's id and when it was last saved."""
        yield from [(session, now) for session, (_, now) in self._states.items()]


class DirectorySessions:
    """Sessions as files of one directory, one each.

    A power cut during `save` may leave a draft: it holds secrets too, so it counts as a session of
    which nothing can be loaded, and is erased like one.
    """

    def __init__(self, directory: Path) -> None:
        """Use a directory; it is made if needed, for its owner alone."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory

    def load(self, session: bytes) -> bytes | None:
        """Return the state last saved, None if there is none."""
        try:
            return self._path(session).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        """Save a state; it is on the disk when this returns."""
        path = self._path(session)
        draft = path.with_suffix(_DRAFT)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # the mode is set as it is made
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        os.utime(draft, (now.timestamp(), now.timestamp()))
        draft.replace(path)
        _sync(self._directory)

    def erase(self, session: bytes) -> None:
        """Forget a session."""
        path = self._path(session)
        path.unlink(missing_ok=True)
        path.with_suffix(_DRAFT).unlink(missing_ok=True)

    def sessions(self) -> Iterator[tuple[bytes, datetime]]:
        """Yield each session's id and when it was last saved."""
        saved = {path.stem: path for path in self._directory.glob(f"*{_DRAFT}")}
        saved |= {path.stem: path for path in self._directory.glob(f"*{_SAVED}")}
        for _, path in sorted(saved.items()):
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield bytes.fromhex(path.stem), datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def _path(self, session: bytes) -> Path:
        return self._directory / f"{session.hex()}{_SAVED}"


def _sync(directory: Path) -> None:
    """Make a rename in a directory last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

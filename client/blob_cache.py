"""A directory of blobs by digest that fills itself from another server, within a quota.

    cache.find(digest) -> Blob      blob.pieces(start) -> bytes, also while they are still coming

What several ask for at once is fetched once, and each is served as it arrives. The fetching is a
device's own (`ota.release.download`): it resumes, has limits, and gives a file its name only if it
has the digest. What does not fit makes the blobs go that were asked for the longest ago.

Nobody need trust it. But the last piece of a blob on its way is held back until the blob is found
to be what its digest says: who is served from an upstream that lies sees a cut, and not a whole
file for which the cache would be blamed.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from wildflower.ota.errors import FetchError, OtaError, StorageError

PIECE: Final = 1 << 16  # bytes read at a time
GLANCE_S: Final = 1.0
"""How often who waits for bytes looks again, should a wake be lost."""


class Upstream(Protocol):
    """Where blobs come from."""

    def length(self, digest: str) -> int:
        """Return how many bytes a blob has, by what the upstream says.

        Raises:
            NotThereError: It has no such blob.
            FetchError: It does not answer.
        """
        ...

    def fetch(
        self, digest: str, length: int, destination: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Put a blob at its place; its part lies beside it as `<digest>.part` until it is whole.

        Raises:
            RefusedError: What is served is not what the digest says.
            FetchError: It cannot be had.
            StorageError: The disk is full or cannot be written.
        """
        ...


@dataclass(slots=True, eq=False)
class Filling:
    """A blob on its way, as those see it who wait for its bytes.

    Attributes:
        changed: Guards and tells of everything else.
        length: Its bytes; 0 until the upstream has said.
        received: How many have come.
        begun: How often it was begun anew; what was served before is not to be gone on with.
        ended: Whether nothing more comes.
        failure: Why it did not become whole; None if it did or still may.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    length: int = 0
    received: int = 0
    begun: int = 0
    ended: bool = False
    failure: OtaError | None = None

    def came(self, received: int) -> None:
        """Remember how many bytes have come."""
        with self.changed:
            self.begun += received < self.received
            self.received = received
            self.changed.notify_all()

    def starts(self, length: int) -> None:
        """Remember how long it is."""
        with self.changed:
            self.length = length
            self.changed.notify_all()

    def ends(self, failure: OtaError | None) -> None:
        """Remember that nothing more comes."""
        with self.changed:
            self.ended, self.failure = True, failure
            self.changed.notify_all()

    def wait_for_length(self) -> int:
        """Return its length, once that is known.

        Raises:
            OtaError: It cannot be had.
        """
        with self.changed:
            while not self.length and not self.ended:
                self.changed.wait(GLANCE_S)
            if self.failure is not None:
                raise self.failure
            return self.length

    def wait_for_end(self, begun: int) -> None:
        """Wait until it is whole and was found to be what its digest says.

        Raises:
            FetchError: It will not be.
        """
        while not self.ended:
            self.wait_for_more(begun)
        self.wait_for_more(begun)

    def wait_for_more(self, begun: int) -> None:
        """Wait until something has changed, or for a moment.

        Raises:
            FetchError: It will not become whole, or what was served of it may be wrong.
        """
        with self.changed:
            if not self.ended:
                self.changed.wait(GLANCE_S)
            if self.failure is not None or self.begun != begun:
                raise FetchError(f"the upstream failed: {self.failure or 'begun anew'}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that is here, or on its way.

    Attributes:
        place: Where it lies when it is whole.
        length: Its bytes.
        filling: How it comes; None if it is here.
    """

    place: Path
    length: int
    filling: Filling | None = None

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """Yield bytes of it, as they come.

        Args:
            start: The first byte.
            length: How many.

        Raises:
            FetchError: It does not become whole.
        """
        begun = self.filling.begun if self.filling else 0
        with _opened(self.place) as descriptor:
            while length:
                piece = os.pread(descriptor, min(PIECE, length), start)
                if piece:
                    if self.filling is not None and start + len(piece) == self.length:
                        self.filling.wait_for_end(begun)
                    start, length = start + len(piece), length - len(piece)
                    yield piece
                elif self.filling is None or self.filling.ended:
                    raise FetchError(f"{self.place.name} ends early")
                else:
                    self.filling.wait_for_more(begun)


class _opened:  # noqa: N801  a context manager, called like a function
    """A file descriptor of a blob, or of its part; it survives renaming and eviction."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> int:
        for path in (part_of(self._place), self._place, part_of(self._place)):
            try:
                self._descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            return self._descriptor
        raise FetchError(f"{self._place.name} is not here any more")

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class BlobCache:
    """Blobs in a directory. Safe to use from several threads of one process."""

    def __init__(self, directory: Path, max_bytes: int, upstream: Upstream) -> None:
        """Open a cache, or make one.

        Args:
            directory: Where blobs lie, and nothing else.
            max_bytes: What they may take together.
            upstream: Where they come from.

        Raises:
            OSError: The directory cannot be made.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("*.part"):  # of a process that was killed
            left.unlink(missing_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._upstream = upstream
        self._turn = threading.Lock()
        self._fillings: dict[str, Filling] = {}

    def find(self, digest: str) -> Blob:
        """Return a blob; what is not here begins to come.

        Args:
            digest: 64 hex digits; whoever calls has checked that.

        Raises:
            NotThereError: The upstream has no such blob.
            FetchError: The upstream does not answer.
            StorageError: It does not fit.
        """
        place = self._directory / digest
        with self._turn:
            filling = self._fillings.get(digest)
            if filling is None:
                if place.exists():
                    now = time.time_ns()  # the kernel's own stamps are milliseconds coarse
                    os.utime(place, ns=(now, now))  # what is asked for stays
                    return Blob(place, place.stat().st_size)
                filling = self._fillings[digest] = Filling()
                threading.Thread(
                    target=self._fill, args=(digest, place, filling), name="fill", daemon=True
                ).start()
        return Blob(place, filling.wait_for_length(), filling)

    def _fill(self, digest: str, place: Path, filling: Filling) -> None:
        failure: OtaError | None = None
        try:
            length = self._upstream.length(digest)
            self._make_room(length)
            part_of(place).touch()  # who is served from it must find it
            filling.starts(length)
            self._upstream.fetch(digest, length, place, filling.came)
        except OtaError as error:
            failure = error
        except OSError as error:
            failure = StorageError(f"{self._directory}: {error.strerror}")
        with self._turn:
            del self._fillings[digest]
            if failure is not None:
                part_of(place).unlink(missing_ok=True)
        filling.ends(failure)

    def _make_room(self, length: int) -> None:
        """Remove what was asked for the longest ago until a blob fits.

        Raises:
            StorageError: It would not even fit alone, beside those that are on their way.
        """
        with self._turn:
            coming = sum(one.length for one in self._fillings.values())
            room = self._max_bytes - coming - length
            if room < 0:
                raise StorageError(
                    f"a blob of {length} bytes beside {coming} on their way: the cache may take "
                    f"{self._max_bytes}",
                    hint="Give it more: --max-bytes.",
                )
            blobs = [path for path in self._directory.iterdir() if path.suffix != ".part"]
            ages = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in blobs)
            used = sum(size for _, size, _ in ages)
            for _, size, path in ages:
                if used <= room:
                    return
                path.unlink()
                used -= size


def part_of(place: Path) -> Path:
    """Return where a blob lies while it comes."""
    return place.with_name(f"{place.name}.part")

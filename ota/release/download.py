"""Fetching one file by its digest, from several sources, through cuts, lies and full disks.

The rules (RFC 9110, section 14, and what faulty servers have been seen to do):

* The part file is named by the digest and lies in the destination's directory: a new release never
  appends to an old part, and the final rename never crosses a file system.
* `Range: bytes=N-` resumes; 206 counts only if its Content-Range begins at N and names the length
  that is signed. After a wrong one the source is asked for the whole file. 200 starts over, 416
  empties the part.
* Every MiB is synced, and the part file's name when it is made, so that a power cut costs at most
  one MiB; what is on disk afterwards need not be right, which is why the whole file is hashed
  before it gets its name.
* A cut costs a try only if it brought nothing new. Waiting is full jitter with a doubling bound; a
  Retry-After is honoured. 4xx is for good (but 408, 425 and 429).
* Too many bytes, another encoding than asked for or a wrong digest is the source's fault, not the
  network's: it gets a second try (the part may have been torn by a power cut or begun by another
  source), then it is refused.
* Redirects are not followed: a blob has one place, and a loop of them costs one request.
* Every byte that comes counts against a budget, whichever source sent it and whatever it was good
  for. A server that sends the same half for ever costs a device a bounded sum, not its data plan.

No source is trusted; what counts is the digest in a signed manifest.
"""

import errno
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import httpx

from wildflower.ota.errors import (
    BudgetError,
    FetchError,
    RefusedError,
    SlowError,
    StoppedError,
    StorageError,
)
from wildflower.ota.release.answers import ContentRange, retry_after_s
from wildflower.ota.release.asking import Asking, Refusal
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.files import make_directory, sync_directory
from wildflower.ota.release.http import Answer, LateError, Line
from wildflower.ota.release.manifest import FileEntry

SYNC_EVERY: Final = 1 << 20  # bytes
TRIES: Final = 6
"""Tries per source that bring nothing new, before the next source has its turn."""
WRONG_TRIES: Final = 2
"""Wrong contents per source; a third would only cost bytes (16 times the file was measured)."""
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
LONGEST_RETRY_AFTER_S: Final = 300.0
"""A server that asks for more is left for the next source, or for the next check."""
SLOWEST: Final = 256  # bytes per second, over each SLOW_AFTER_S of a try
SLOW_AFTER_S: Final = 30.0
PASSING: Final = frozenset({408, 425, 429})
"""Client errors that a later try may not meet again."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a download takes from the world beside its HTTP client.

    Attributes:
        wait: Waits for a number of seconds; may return early.
        draw: Draws a number in [0, 1).
        free: Bytes that are free where a path lies.
        now: The time, for Retry-After as a date.
        clock: Seconds that only grow, for the slowest rate that is put up with.
    """

    wait: Callable[[float], object] = time.sleep
    draw: Callable[[], float] = random.random
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic


class _CutError(Exception):
    """The try ended early; another may do better, at once or after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _WrongError(Exception):
    """The source served what cannot be the file."""


@dataclass(slots=True)
class Download:
    """One file on its way.

    Attributes:
        entry: What it must be.
        destination: Where it shall lie.
        client: The HTTP client; its time-outs bound each wait for bytes.
        should_stop: Asked between chunks; True ends the download and keeps the part.
        on_bytes: Told how many bytes of the file are in the part, after each chunk.
        surroundings: Waiting, drawing, free space, time.
        refusals: What sources were refused for; appended to.
        budget: Counts the bytes that come; None for no limit.
    """

    entry: FileEntry
    destination: Path
    client: Line
    should_stop: Callable[[], bool] = lambda: False
    on_bytes: Callable[[int], None] = lambda _: None
    surroundings: Surroundings = Surroundings()
    refusals: list[Refusal] = field(default_factory=list)
    budget: ByteBudget | None = None

    @property
    def part(self) -> Path:
        """The part file."""
        return self.destination.with_name(f"{self.entry.digest}.part")

    @property
    def received(self) -> int:
        """Bytes in the part file."""
        with suppress(FileNotFoundError):
            return self.part.stat().st_size
        return 0

    def run(self, sources: Sequence[str]) -> None:
        """Fetch the file; do nothing if it is there already.

        Raises:
            RefusedError: No source served the file, and one at least served something else.
            FetchError: No source could be had; StoppedError if `should_stop` said so, BudgetError
                if it has cost too much.
            StorageError: The disk is full or cannot be written; the part is kept.
        """
        if self._is_there():
            return
        asking = Asking(self.entry.name, self.refusals)
        for source in sources:
            try:
                self._from_source(source)
            except (StoppedError, BudgetError):
                raise
            except (RefusedError, FetchError) as error:
                asking.failed(source, error, str(error))
            else:
                return
        raise asking.error()

    def _is_there(self) -> bool:
        """Whether the file is there; if not, fail before the first byte that would not fit."""
        try:
            if _sha256(self.destination) == self.entry.digest:
                return True
            make_directory(self.destination.parent)
            if self.received > self.entry.length:
                self.part.unlink()
            free = self.surroundings.free(self.destination.parent)
        except OSError as error:
            raise self._storage_error(error) from error
        if free < self.entry.length - self.received:
            raise self._storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return False

    def _from_source(self, source: str) -> None:
        """Try one source until it served the file, was refused, or brought nothing for too long."""
        idle, wrong, best, whole = 0, 0, self.received, False
        while True:
            self._check_stop()
            try:
                self._attempt(source, 0 if whole else self.received)
                self._finish()
                return
            except _WrongError as error:
                wrong += 1
                best = 0
                if wrong >= WRONG_TRIES:
                    raise RefusedError(f"{source} {error}") from error
            except _CutError as error:
                idle, best = (0, self.received) if self.received > best else (idle + 1, best)
                if idle >= TRIES or error.retry_after > LONGEST_RETRY_AFTER_S:
                    is_late = isinstance(error.__cause__, LateError)
                    kind = SlowError if is_late else FetchError
                    raise kind(f"{source}: {error}, after {idle} tries") from error
                whole = whole or isinstance(error, _WrongRangeError)
                self._pause(idle, error.retry_after)

    def _pause(self, idle: int, retry_after: float) -> None:
        bound = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**idle)
        self.surroundings.wait(max(retry_after, self.surroundings.draw() * bound))

    def _attempt(self, source: str, have: int) -> None:
        """Ask once for what is missing after `have` bytes, and take what comes."""
        if have == self.entry.length:
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        url = f"{source.rstrip('/')}/blobs/{self.entry.digest}"
        try:
            with self.client.get(url, headers) as response:
                self._take(response, have)
        except httpx.InvalidURL as error:  # a setting's fault: no other try does better
            raise FetchError(f"{url}: {error}") from error
        except httpx.HTTPError as error:
            raise _CutError(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise self._storage_error(error) from error
        if self.received < self.entry.length:
            raise _CutError(f"the body ended at byte {self.received} of {self.entry.length}")

    def _take(self, response: Answer, have: int) -> None:
        match response.status_code:
            case 200:
                have = 0
                self._check_encoding(response)
                self._check_length(response)
            case 206 if have and self._is_right_range(response, have):
                pass
            case 206:
                found = response.headers.get("Content-Range", "none")
                raise _WrongRangeError(f"Content-Range {found!r}, expected to begin at {have}")
            case 416:
                self.part.unlink(missing_ok=True)
                raise _CutError("HTTP 416, the part is begun anew")
            case status if status >= 500 or status in PASSING:
                raise _CutError(f"HTTP {status}", self._retry_after(response))
            case status:
                raise FetchError(f"{response.url}: HTTP {status}")
        with self._open_part() as file:
            if self.received != have:
                file.truncate(have)
            self._write(response, file, have)

    def _open_part(self) -> IO[bytes]:
        is_new = not self.part.exists()
        file = self.part.open("ab")
        if is_new:
            sync_directory(self.part.parent)
        return file

    def _check_encoding(self, response: Answer) -> None:
        """Refuse a body that was packed although `identity` was asked for."""
        found = response.headers.get("Content-Encoding", "identity").lower()
        if found != "identity":
            raise _WrongError(f"served {self.entry.name}: encoded as {found}, expected identity")

    def _check_length(self, response: Answer) -> None:
        """Refuse a body that says it is another file before it costs the part."""
        found = response.headers.get("Content-Length", str(self.entry.length))
        if found != str(self.entry.length):
            raise _WrongError(
                f"served {self.entry.name}: {found} bytes, expected {self.entry.length}"
            )

    def _is_right_range(self, response: Answer, have: int) -> bool:
        found = ContentRange.of(response.headers.get("Content-Range", ""))
        return found is not None and found.is_rest(have, self.entry.length)

    def _write(self, response: Answer, file: IO[bytes], have: int) -> None:
        synced, mark, began = have, have, self.surroundings.clock()
        try:
            for chunk in response.iter_raw():
                if have + len(chunk) > self.entry.length:
                    self.part.unlink()
                    raise _WrongError(
                        f"served {self.entry.name}: endless, expected {self.entry.length} bytes"
                    )
                file.write(chunk)
                have += len(chunk)
                if have - synced >= SYNC_EVERY:
                    _sync(file)
                    synced = have
                self.on_bytes(have)
                self._check_stop()
                if self.budget is not None:
                    self.budget.spend(len(chunk))
                if (passed := self.surroundings.clock() - began) > SLOW_AFTER_S:
                    self._check_rate(have - mark, passed)
                    mark, began = have, began + passed
        except (httpx.HTTPError, FetchError):
            _sync(file)  # what has come is kept; after an error of the disk nothing is synced
            raise
        _sync(file)

    def _check_rate(self, count: int, seconds: float) -> None:
        """Leave a source that drips: it would hold the device for ever without a time-out."""
        if count < SLOWEST * seconds:
            raise SlowError(  # in the same words each time, so that it is told to the server once
                f"{self.entry.name}: too slow, expected at least {SLOWEST} bytes a second"
            )

    def _finish(self) -> None:
        """Give the file its name if it is what was signed; else drop it."""
        try:
            found = _sha256(self.part)
            if found != self.entry.digest:
                self.part.unlink(missing_ok=True)
                raise _WrongError(
                    f"served {self.entry.name}: wrong digest: found SHA-256 {found}, "
                    f"expected {self.entry.digest}"
                )
            self.part.replace(self.destination)
            sync_directory(self.destination.parent)
        except OSError as error:
            raise self._storage_error(error) from error

    def _check_stop(self) -> None:
        if self.should_stop():
            raise StoppedError(
                f"{self.entry.name}: stopped at byte {self.received} of {self.entry.length}"
            )

    def _retry_after(self, response: Answer) -> float:
        """Return how long the server asks to wait, in seconds; 0 if it does not say."""
        return retry_after_s(response.headers.get("Retry-After", ""), self.surroundings.now())

    def _storage_error(self, error: OSError) -> StorageError:
        if error.errno in FULL:
            missing = self.entry.length - self.received
            return StorageError(
                f"disk full at {self.destination.parent}: {self.entry.name} needs {missing} bytes "
                f"more, {self.received} of {self.entry.length} are kept",
                hint=f"Free {missing} bytes; the download goes on where it stopped.",
            )
        return StorageError(f"{self.destination.parent}: {error.strerror or error}")


class _WrongRangeError(_CutError):
    """The answer to a Range begins elsewhere; the source is asked for the whole file."""


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fdatasync(file.fileno())


def _sha256(path: Path) -> str:
    """Return a file's digest; "" if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""

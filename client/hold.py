"""Holds: an application keeps the model as it is for as long as it must.

    with Holds(root).hold("measuring", max_s=60):
        ...                                     # what runs here stays what it is

While somebody holds, downloads go on; a new release takes over, and the agent replaces itself, only
afterwards. A hold ends with its block, with its process, however that ends, and after `max_s` at
the latest. It never keeps a device on a release that a signed order or a failed probation takes
away: leaving a bad model waits for nobody.

    holds/<name>.hold    one file for each hold: reason, holder, end; locked (flock) by its process
    holds/lock           shared by who begins a hold, exclusive for the moment of the switch

A lock and not the file says that a hold stands, because the kernel gives a lock back whatever
happens to its process. Ends are told by a clock that runs from the boot and cannot be set.
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from wildflower.client.errors import HoldError

FOLDER: Final = "holds"
LONGEST_S: Final = 86_400.0
"""A day; who needs longer wants `wildflower agent pause`."""
MAX_REASON: Final = 200  # characters
MAX_FILE: Final = 4096  # bytes
MAX_HOLDS: Final = 64
"""Holds that may stand at once: more is a program that forgets to end them."""
BUSY: Final = "an application is just beginning a hold"


def seconds_since_boot() -> float:
    """Return the seconds since the boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold, as others see it.

    Attributes:
        name: Its name, of its file.
        reason: Why, in its holder's words.
        holder: Process id of who holds, or the name it gave itself.
        left_s: Seconds until it ends by itself.
    """

    name: str
    reason: str
    holder: str
    left_s: float

    def __str__(self) -> str:
        """Return it in a sentence."""
        return f"{self.holder} holds for {self.left_s:.0f} s more: {self.reason}"


class Held:
    """A hold of this process; made by `Holds.take`."""

    def __init__(self, path: Path, file: IO[bytes], until_s: float, clock: Callable[[], float]):
        self.name: Final = path.stem
        self._path, self._file, self._until_s, self._clock = path, file, until_s, clock

    @property
    def left_s(self) -> float:
        """Seconds until it ends by itself; 0 once it has ended."""
        return 0.0 if self._file.closed else max(0.0, self._until_s - self._clock())

    def release(self) -> None:
        """End it; once more changes nothing."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):  # a read-only disk: the lock alone counts
            self._path.unlink(missing_ok=True)
        fcntl.flock(self._file, fcntl.LOCK_UN)  # also for a child that was forked meanwhile
        self._file.close()


class Holds:
    """The holds on one device."""

    def __init__(self, root: Path, clock: Callable[[], float] = seconds_since_boot) -> None:
        """Look at a device.

        Args:
            root: The device's directory.
            clock: Seconds that cannot be set back or forward.
        """
        self._directory = root / FOLDER
        self._clock = clock

    @contextmanager
    def hold(self, reason: str, *, max_s: float) -> Iterator[Held]:
        """Hold for the length of the block; see `take`."""
        held = self.take(reason, max_s=max_s)
        try:
            yield held
        finally:
            held.release()

    def take(self, reason: str, *, max_s: float, holder: str = "") -> Held:
        """Begin a hold; when this returns, no release is taking over, and none will.

        Args:
            reason: Why, for whoever asks what an update waits for; at most 200 characters.
            max_s: It ends by itself after so many seconds, in (0, 86400].
            holder: Who; this process by default.

        Raises:
            HoldError: Too many hold already, or the device's directory cannot be written.
            ValueError: The reason or the seconds are out of range.
        """
        if not (reason and reason.isprintable() and len(reason) <= MAX_REASON):
            raise ValueError(f"a reason is 1 to {MAX_REASON} printable characters: {reason[:80]!r}")
        if not 0.0 < max_s <= LONGEST_S:
            raise ValueError(f"max_s is in (0, {LONGEST_S:g}] seconds, found {max_s!r}")
        if len(self.standing()) >= MAX_HOLDS:
            raise HoldError(
                f"{MAX_HOLDS} holds stand already",
                hint="`wildflower agent status` shows whose they are.",
            )
        try:
            self._directory.mkdir(exist_ok=True)
            with self._locked(fcntl.LOCK_SH):
                return self._write(reason, max_s, holder or f"process {os.getpid()}")
        except OSError as error:
            raise HoldError(
                f"no hold in {self._directory}: {error}",
                hint="The application's user needs to write into the device's directory.",
            ) from error

    def standing(self) -> tuple[Hold, ...]:
        """Return the holds that stand; what a process left that is gone is cleared away."""
        found = map(self._read, sorted(self._directory.glob("*.hold")))
        return tuple(hold for hold in found if hold is not None)

    @contextmanager
    def switching(self) -> Iterator[tuple[str, ...]]:
        """Keep new holds waiting for the length of the block; say who holds already.

        The block must not switch unless the answer is empty. Without a directory that can be
        written nobody can hold.
        """
        if not self._directory.is_dir():
            yield ()
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                held: tuple[str, ...] = (BUSY,)
            else:
                for torn in self._directory.glob("*.new"):  # nobody is beginning one now
                    torn.unlink(missing_ok=True)
                held = tuple(map(str, self.standing()))
            yield held

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self._directory / "lock").open("a") as file:
            fcntl.flock(file, how)
            yield

    def _write(self, reason: str, max_s: float, holder: str) -> Held:
        until_s = self._clock() + max_s
        path = self._directory / f"{secrets.token_hex(8)}.hold"
        partial = path.with_suffix(".new")
        file = partial.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)  # before it is seen: unlocked means that nobody holds
        body = {"reason": reason, "holder": holder, "until_s": until_s}
        file.write(json.dumps(body).encode())
        file.flush()
        partial.replace(path)
        return Held(path, file, until_s, self._clock)

    def _read(self, path: Path) -> Hold | None:
        try:
            with path.open("rb") as file:
                if _is_free(file):
                    path.unlink(missing_ok=True)
                    return None
                return self._parsed(path.stem, file.read(MAX_FILE + 1))
        except OSError:  # it ended meanwhile, or is not ours to clear away
            return None

    def _parsed(self, name: str, data: bytes) -> Hold | None:
        """Return what a file says; None if it has ended, or asks for more than anybody may."""
        try:
            body = json.loads(data[:MAX_FILE])
            reason, holder = str(body["reason"])[:MAX_REASON], str(body["holder"])[:MAX_REASON]
            left_s = float(body["until_s"]) - self._clock()
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None
        return Hold(name, reason, holder, left_s) if 0.0 < left_s <= LONGEST_S else None


def _is_free(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Child processes of the server: started, watched, started again, and ended with everything below.

Each child is the leader of a session of its own and prints into `logs/<name>.log`. The kernel ends
it when this process ends, however it ends (PR_SET_PDEATHSIG, which a child has to ask for itself:
this module, run as a program, asks and then becomes the child). At the end the whole process group
gets SIGTERM and, after a grace, SIGKILL.

    with Supervisor(children, logs) as supervisor:
        supervisor.wait_ready(timeout_s=30)

A child that dies is started again after a pause that doubles up to a bound, and starts short again
once a child has lived for a while.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from wildflower.server.errors import StartError

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 15.0
SETTLED_S: Final = 30.0  # a child that lived this long has not failed to start
GRACE_S: Final = 5.0  # between SIGTERM and SIGKILL
LOOK_S: Final = 0.05  # between two looks at children that start or end
LOG_TAIL: Final = 2000  # bytes of a child's log that an error shows


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running.

    Attributes:
        name: What it is called, and its log.
        command: Its command line.
        is_ready: Tells, without waiting, whether it serves.
        environment: Variables to add to ours.
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """How a child is: "starting", "running", "waiting" for its next start, or "ended"."""

    name: str
    pid: int
    state: str
    restarts: int


class Supervisor:
    """Keeps children running while its block lasts.

    Args:
        children: What to run.
        logs: Directory of their logs.
        grace_s: Seconds between SIGTERM and SIGKILL at the end.
    """

    def __init__(self, children: Sequence[Child], logs: Path, *, grace_s: float = GRACE_S) -> None:
        self._keepers = [_Keeper(child, logs / f"{child.name}.log", grace_s) for child in children]

    def __enter__(self) -> Self:
        for keeper in self._keepers:
            keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for keeper in self._keepers:
            keeper.ask_to_end()
        for keeper in self._keepers:
            keeper.join()

    def status(self) -> list[ChildStatus]:
        """Return how each child is."""
        return [keeper.status() for keeper in self._keepers]

    @property
    def is_ready(self) -> bool:
        """Whether every child runs and serves."""
        return all(keeper.is_ready() for keeper in self._keepers)

    def wait_ready(self, timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until every child serves.

        Args:
            timeout_s: How long it may take, in seconds.
            give_up: Asked while waiting; true ends the wait.

        Raises:
            StartError: One does not; the end of its log is told.
        """
        end = time.monotonic() + timeout_s
        pause = threading.Event()
        while not self.is_ready and not give_up():
            if time.monotonic() > end:
                late = next(keeper for keeper in self._keepers if not keeper.is_ready())
                raise StartError(
                    f"{late.child.name} did not start within {timeout_s:.0f} s; its log ends with:"
                    f"\n{late.log_tail()}",
                    hint=f"The whole log: {late.log}",
                )
            pause.wait(LOOK_S)


class _Keeper:
    """Keeps one child running, from a thread that lives as long as the child may.

    PR_SET_PDEATHSIG fires when the *thread* that started a child ends, so every start of a child
    is this thread's.
    """

    def __init__(self, child: Child, log_path: Path, grace_s: float) -> None:
        self.child, self.log = child, log_path
        self._grace_s = grace_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keep-{child.name}", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._state = "starting"
        self._served = False

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def ask_to_end(self) -> None:
        self._ending.set()

    def join(self) -> None:
        self._thread.join()

    def is_ready(self) -> bool:
        """Whether it runs and has served since its start; asked of the child until it has."""
        if self._state == "running" and not self._served:
            self._served = self.child.is_ready()
        return self._state == "running" and self._served

    def status(self) -> ChildStatus:
        process = self._process
        pid = process.pid if process is not None and self._state == "running" else 0
        return ChildStatus(self.child.name, pid, self._state, max(0, self._starts - 1))

    def log_tail(self) -> str:
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        return data[-LOG_TAIL:].decode(errors="replace").strip()

    def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ending.is_set():
            began = time.monotonic()
            self._run_once()
            if self._ending.is_set():
                break
            if time.monotonic() - began > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            self._state = "waiting"
            self._ending.wait(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self._state = "ended"

    def _run_once(self) -> None:
        """Start the child and stay until it has ended, or shall end."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                tethered(self.child.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.child.environment},
                start_new_session=True,
            )
        self._process, self._served, self._state = process, False, "running"
        self._starts += 1
        log.info("child started", extra={"child": self.child.name, "pid": process.pid})
        try:
            while process.poll() is None and not self._ending.wait(LOOK_S):
                pass
        finally:
            code = process.poll()
            end_group(process, self._grace_s)
        if not self._ending.is_set():
            log.warning("child ended", extra={"child": self.child.name, "code": code})


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that was run once.

    Attributes:
        code: Its exit code; None if it was ended because it took too long or we stop.
        output: What it wrote to standard output.
        errors: What it wrote to standard error; empty if that went to a log.
    """

    code: int | None
    output: bytes
    errors: bytes


def run_once(
    command: Sequence[str],
    *,
    stopping: threading.Event,
    time_s: float,
    data: bytes = b"",
    log_path: Path | None = None,
) -> Finished:
    """Run a child to its end; it ends with us, and leaves nothing behind.

    Args:
        command: Its command line.
        stopping: Ends it when set.
        time_s: How long it may take, in seconds.
        data: What it reads from standard input.
        log_path: Where standard error goes; None keeps it.
    """
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(tempfile.TemporaryFile())
        output = stack.enter_context(tempfile.TemporaryFile())
        errors = stack.enter_context(_log_or_temporary(log_path))
        given.write(data)
        given.seek(0)
        process = subprocess.Popen(
            tethered(command),
            stdin=given,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        end = time.monotonic() + time_s
        try:
            while process.poll() is None and time.monotonic() < end:
                if stopping.wait(LOOK_S):
                    break
            code = process.poll()
        finally:
            end_group(process, GRACE_S)
        output.seek(0)
        found = output.read()
        if log_path is not None:
            return Finished(code, found, b"")
        errors.seek(0)
        return Finished(code, found, errors.read())


def _log_or_temporary(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def tethered(command: Sequence[str]) -> list[str]:
    """Return a command line that becomes `command`, and ends with the thread that starts it."""
    return [sys.executable, "-m", "wildflower.server.supervise", str(os.getpid()), *command]


def end_group(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End a session leader and everything in its process group; reap the leader."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        if process.returncode is not None and not _group_lives(process.pid, grace_s):
            return


def _group_lives(group: int, grace_s: float) -> bool:
    """Wait until a process group is empty; whether it is not."""
    end = time.monotonic() + grace_s
    pause = threading.Event()
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        pause.wait(LOOK_S)
    return True


def become(parent: int, command: Sequence[str]) -> None:
    """Ask the kernel to end this process with its parent, then become `command`.

    Args:
        parent: Who the parent should be: it may have ended before we could ask.
        command: The command line.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)
    os.execvp(command[0], list(command))  # noqa: S606  no shell: that is the point


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])

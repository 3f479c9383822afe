"""The processes of a local fleet: started with a log each, found again by pid and start time.

A pid alone is not enough to stop a process later: the system may have given it to another one
since. The kernel's start time of a pid tells the two apart.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from wildflower.simulation.errors import ProcessError

GRACE_S: Final = 10.0
"""Seconds a process has to end by itself before it is killed."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the fleet.

    Attributes:
        name: "server", or the device's name.
        pid: Its process id, which is also its process group and session.
        started: Its start time in kernel ticks since boot.
        log: Where it prints to.
    """

    name: str
    pid: int
    started: int
    log: str


def start_time(pid: int) -> int:
    """Return a live process's start time in ticks; 0 if there is no such process, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether it still runs, and is the one that was started."""
    return process.started != 0 and start_time(process.pid) == process.started


def spawn(
    name: str,
    module: str,
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    die_with_parent: bool = False,
) -> Process:
    """Start `python -m module` in a session of its own.

    Args:
        name: What the fleet calls it.
        module: The module to run.
        arguments: Its arguments.
        log: File that its output is appended to.
        environment: Variables to add to our own.
        die_with_parent: Whether the kernel ends it when this process ends, however it ends.
    """
    added = dict(environment or {})
    if die_with_parent:
        arguments = [module, *arguments]
        module = "wildflower.simulation.local.tethered"
        added["WILDFLOWER_TETHER"] = str(os.getpid())
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", module, *arguments],
            {**os.environ, **added},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(output)
    return Process(name, pid, start_time(pid), str(log))


def stop(processes: Sequence[Process], *, grace_s: float = GRACE_S) -> None:
    """End processes and everything in their sessions: SIGTERM, then SIGKILL after the grace."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, GRACE_S)):
        left = [process for process in processes if orphans([process])]
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + wait_s
        while orphans(left) and time.monotonic() < deadline:
            reap()
            time.sleep(0.02)  # nothing waits for processes that are not our children


def kill(process: Process) -> None:
    """End a process as a power cut would: SIGKILL, to it alone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    while is_alive(process):
        time.sleep(0.005)
    reap()


def session_members(session: int) -> list[int]:
    """Return the pids of live processes in a session, other than its leader."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == session:
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(path.name))
    return found


def reap() -> None:
    """Take the exit status of children that have ended, so that none stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def orphans(processes: Sequence[Process]) -> list[int]:
    """Return pids that are left of processes that should have ended."""
    left = [process.pid for process in processes if is_alive(process)]
    return left + [pid for process in processes for pid in session_members(process.pid)]


def last_lines(process: Process, count: int = 15) -> str:
    """Return the end of a process's log, for an error message."""
    try:
        return "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def require_alive(process: Process) -> None:
    """Check that a process runs.

    Raises:
        ProcessError: It has ended; the message holds the end of its log.
    """
    if not is_alive(process):
        raise ProcessError(
            f"{process.name} has ended; its log ends with:\n{last_lines(process)}",
            hint=f"The whole log: {process.log}",
        )


def save(directory: Path, processes: Sequence[Process]) -> None:
    """Remember the fleet's processes, atomically."""
    partial = directory / "processes.json.partial"
    partial.write_text(json.dumps([asdict(process) for process in processes], indent=1))
    partial.replace(directory / "processes.json")


def load(directory: Path) -> list[Process]:
    """Return the processes that were remembered, running or not."""
    try:
        return [Process(**row) for row in json.loads((directory / "processes.json").read_text())]
    except (OSError, ValueError, TypeError):
        return []

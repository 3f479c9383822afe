"""Runs a program that the device's owner named, and survives whatever it does.

It gets its own session, so that what it started ends with it; a time limit; and a pipe of which
only the first bytes are kept, so that one that never stops talking costs no memory and no disk.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.ota.errors import PostponedError, ProgramError

MAX_OUTPUT: Final = 8192  # bytes; a sentence, or a few, for a report
GLANCE_S: Final = 0.1
"""How often the waiting parent looks whether the program has ended or must."""
READ: Final = 65_536  # bytes at every glance, which is what a pipe holds: who says more is slowed


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Its exit code; the negative number of the signal that ended it.
        output: The first `MAX_OUTPUT` bytes that it said, on either stream.
    """

    code: int
    output: bytes

    @property
    def last_line(self) -> str:
        """The last line of what was kept, at most 300 characters; "" if it said nothing."""
        lines = self.output.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def __str__(self) -> str:
        """Return the sentence that goes into a report."""
        how = f"was ended by signal {-self.code}" if self.code < 0 else f"ended with {self.code}"
        return f"{how}: {self.last_line or 'it said nothing'}"


def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    timeout_s: float,
    should_stop: Callable[[], bool] = lambda: False,
    inherited: Sequence[int] = (),
) -> Ended:
    """Run a program to its end.

    Args:
        command: The executable and its arguments; no shell reads them.
        environment: What it finds in its environment beside PATH; nothing of the agent's own.
        directory: Where it runs.
        timeout_s: After this many seconds it is killed, with all that it started.
        should_stop: Whether the agent is told to end; the program is then run again later.
        inherited: Descriptors that stay open for as long as anything of it runs.

    Raises:
        ProgramError: It cannot be started, or did not end in time.
        PostponedError: `should_stop` said so.
    """
    try:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            start_new_session=True,
            pass_fds=inherited,
        )
    except OSError as error:
        raise ProgramError(f"{command[0]} cannot be started: {error.strerror}") from error
    with child:
        try:
            output = _listen(child, command[0], timeout_s, should_stop)
        finally:
            with contextlib.suppress(ProcessLookupError):  # the whole session has ended
                os.killpg(child.pid, signal.SIGKILL)
    return Ended(child.returncode, output)


def _listen(
    child: "subprocess.Popen[bytes]", name: str, timeout_s: float, should_stop: Callable[[], bool]
) -> bytes:
    """Keep what the child says first, drop the rest; return when it has ended."""
    assert child.stdout is not None  # noqa: S101  Popen was asked for a pipe
    deadline, kept, pipe = time.monotonic() + timeout_s, b"", child.stdout.fileno()
    os.set_blocking(pipe, False)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GLANCE_S)
        with contextlib.suppress(BlockingIOError):  # it has said nothing new
            kept = (kept + os.read(pipe, READ))[:MAX_OUTPUT]
        if child.returncode is not None:
            return kept
        if should_stop():
            raise PostponedError(f"told to stop while {name} ran")
        if time.monotonic() > deadline:
            raise ProgramError(f"{name} did not end within {timeout_s:g} s")

"""The training process of a device, as its agent sees it: at most one, started when invited."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

TRAINER: Final = "wildflower.client.trainer"
RACE_S: Final = 1.0
"""An invitation so shortly before the process ended may have come too late for it to notice."""
GRACE_S: Final = 1.0
"""Seconds it has to leave its connection in good order."""


@dataclass(slots=True)
class TrainingProcess:
    """Starts the training process, and looks after it. It ends by itself when it is idle.

    Attributes:
        directory: The device's directory.
        command: What to run; given only by tests.
        clock: Seconds of a monotonic clock.
    """

    directory: Path
    command: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    _child: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    _invited_s: float = field(default=float("-inf"), repr=False)

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""
        return self._child is not None and self._child.poll() is None

    def invite(self) -> None:
        """Start it unless it runs."""
        self._invited_s = self.clock()
        self.tend()
        if self._child is None:
            command = self.command or (sys.executable, "-m", TRAINER, "--dir", str(self.directory))
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            log.info("training process started", extra={"pid": self._child.pid})

    def tend(self) -> None:
        """Notice its end; start it again if an invitation came too late for the one that ended."""
        if self._child is None or self._child.poll() is None:
            return
        code, self._child = self._child.returncode, None
        level = logging.INFO if code == 0 else logging.WARNING
        log.log(level, "training process ended", extra={"code": code})
        if code == 0 and self.clock() - self._invited_s < RACE_S:
            self.invite()

    def end(self) -> None:
        """End it, and wait until it has."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

"""A device whose agent is started by the watchdog, for software other than models.

python -m tests.faults.watched        orders and answers as `tests.faults.device` has them

The watchdog is the real one. Where it would start an agent, the version's own interpreter runs its
daemon, which shows that this version starts; the agent's work is then done here, in the warm
process. Handlers, and all that they start, are processes of their own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.device import GAVE_UP, look, serve

from wildflower.client.daemon import alone
from wildflower.client.errors import ClientError
from wildflower.client.self_update import Watchdog
from wildflower.ota.errors import OtaError

MAX_STARTS = 6
"""Starts of an agent that cannot start: its supervisor would go on, a test does not."""


@dataclass
class Ended:
    """An agent that has done what it had to, as the watchdog sees it."""

    returncode: int

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def terminate(self) -> None:
        """It has ended."""

    kill = terminate


class Device:
    """A device from the moment it is switched on until it owes nothing."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order, self.directory = order, Path(order["directory"])
        self.failures: list[str] = []
        self.starts = 0
        self.watchdog = Watchdog(self.directory, start=self.start, wait=lambda _: None)

    def start(self, command: list[str]) -> Ended:
        """Be the agent once."""
        self.starts += 1
        restarts: list[None] = []
        code = GAVE_UP
        if command[0] == sys.executable or _starts(command):
            code = self.work(restarts)
        if not (restarts or code) or self.starts == MAX_STARTS:
            self.watchdog.end()
        return Ended(code)

    def work(self, restarts: list[None]) -> int:
        """Do the agent's work; return its exit code."""
        try:
            with alone(self.directory):
                self.failures += look(self.directory, self.order, lambda: restarts.append(None))
        except (ClientError, OtaError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return GAVE_UP
        return 0


def _starts(command: list[str]) -> bool:
    return started(command).returncode == 0


def started(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Return how an agent ended; it finds its own modules and not those of the tests."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)


def live(order: dict[str, Any]) -> list[str]:
    """Switch a device on; return what it could not do."""
    device = Device(order)
    device.watchdog.run()
    return device.failures


if __name__ == "__main__":
    serve(live)

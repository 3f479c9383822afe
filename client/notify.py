"""Tells the service manager how the agent is: the sd_notify protocol of systemd, in its own words.

    READY=1      the agent's loop has begun
    STATUS=...   what `systemctl status` shows
    WATCHDOG=1   the loop has turned, or is at a piece of work that gets ahead
    STOPPING=1   it was told to end

Only the loop's thread feeds the watchdog, from the places that it comes by when it works: a loop
that hangs is restarted, whatever its other threads do. Without NOTIFY_SOCKET nothing is sent. What
cannot be sent is not sent again: the manager draws its own conclusion.

Source: sd_notify(3), systemd.service(5).
"""

import logging
import math
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, Self

log = logging.getLogger(__name__)

MAX_STATUS: Final = 200  # characters; a line
FRACTION: Final = 4
"""Messages in one period of the watchdog: one may be late."""


class Notifier:
    """The agent's line to its service manager."""

    def __init__(
        self,
        address: str = "",
        watchdog_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the line.

        Args:
            address: Path of the manager's socket, "@" before an abstract one; "" for none.
            watchdog_s: After this many seconds without a word the manager restarts the agent.
            clock: Seconds that cannot be set.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._period_s = watchdog_s / FRACTION
        self._clock = clock
        self._fed_s = -math.inf
        self._status = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], process: int) -> Self:
        """Return the line that the manager offers in the environment.

        Args:
            environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read.
            process: Id of this process; a watchdog that is meant for another one is not fed.
        """
        address = environment.get("NOTIFY_SOCKET", "")
        period = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(process)) == str(process)
        has_watchdog = is_ours and period.isdecimal() and int(period) > 0
        return cls(address, int(period) / 1e6 if has_watchdog else math.inf)

    @property
    def longest_wait_s(self) -> float:
        """How long the loop may wait without a word, in seconds; infinite without a watchdog."""
        return self._period_s

    def ready(self) -> None:
        """Say that the loop has begun."""
        self._send("READY=1")
        self.beat()

    def beat(self) -> None:
        """Say that the loop gets ahead; no more often than needed."""
        now_s = self._clock()
        if math.isfinite(self._period_s) and now_s - self._fed_s >= self._period_s:
            self._fed_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say what the agent is at, in a line; the same again is not sent."""
        line = " ".join(text.split())[:MAX_STATUS]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """Say that it was told to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)  # a manager that does not read stops no agent
                line.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("the service manager was not told: %s", error)

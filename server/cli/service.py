"""What commands that run a service have in common: where it listens, and until when it runs."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wildflower.logs import show_decisions
from wildflower.server.errors import SettingsError
from wildflower.wakeup import stopped_by_signals

if TYPE_CHECKING:
    from wildflower.server.listener import Place


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """A service that has ended."""

    directory: str
    seconds: float


def run_service(directory: Path, serve: Callable[[threading.Event], None]) -> ServiceRun:
    """Serve until Ctrl-C or SIGTERM; return for how long that was."""
    show_decisions()
    began = time.monotonic()
    with stopped_by_signals() as stopping:
        serve(stopping)
    return ServiceRun(str(directory), round(time.monotonic() - began, 3))


def read_place(listen: str) -> "Place":
    """Return the place that `host:port` names; a host with colons stands in brackets.

    Raises:
        SettingsError: It names none.
    """
    from wildflower.server.listener import Place

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise SettingsError(
            f"--listen = {listen!r} is not allowed", hint="Allowed: host:port, port in [0, 65535]."
        )
    return Place(host.strip("[]"), int(port), "--listen", "of this command")

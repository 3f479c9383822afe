"""Connections in threads of their own: so many at once, and no more."""

import logging
import socketserver
import threading
from typing import Any

log = logging.getLogger(__name__)


class LimitedThreads(socketserver.ThreadingMixIn):
    """A server that hangs up on who comes when all places are taken."""

    daemon_threads = True

    def __init__(self, *arguments: Any, connections: int) -> None:
        """Listen.

        Args:
            arguments: The server's own.
            connections: How many are served at once.
        """
        self._places = threading.BoundedSemaphore(connections)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or hang up."""
        if not self._places.acquire(blocking=False):
            log.warning("too many connections")
            self.shutdown_request(request)  # type: ignore[attr-defined]  # of the server it is mixed into
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

"""A deadline for the beginning of an answer, which a hostile server may drip byte by byte.

httpx bounds each wait for bytes and not their sum: one byte of a header every 29 seconds would hold
a device for weeks, and no chunk of a body ever comes at which somebody could look at the clock. So
a timer shuts the connection down when the headers are late; whoever reads from it sees its end.

What comes after the headers has limits of its own, with those who read it.
"""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import httpx

from wildflower.ota.release.connection import Connection, LateError

HEADERS_S: Final = 60.0
"""Seconds for connection, request and headers together; a satellite's need less than five."""

Http = httpx.Client | Connection
"""What asks: `Connection` on devices, and any client of httpx whose transport is no network."""


class Answer(Protocol):
    """What both give."""

    @property
    def status_code(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, in any case."""
        ...

    @property
    def url(self) -> object:
        """What was asked for."""
        ...

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the body as it comes.

        Raises:
            httpx.HTTPError: It could not be had to its end.
        """
        ...


class Patience:
    """Opens requests, one at a time, of clients that are used one after the other.

    Args:
        seconds: How long headers may take.
    """

    def __init__(self, seconds: float = HEADERS_S) -> None:
        self._seconds = seconds
        self._stream: Any = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the last request was ended because its headers were late."""
        return self._is_over

    @contextmanager
    def get(self, client: Http, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask for a URL; the answer is there when its headers are.

        Raises:
            httpx.HTTPError: It could not be had; ReadTimeout if the headers did not come in time.
            httpx.InvalidURL: Not an address.
        """
        self._is_over = False
        opened = (
            self._by_connection(client, url, headers)
            if isinstance(client, Connection)
            else self._by_httpx(client, url, headers)
        )
        with opened as answer:
            yield answer

    @contextmanager
    def _by_connection(
        self, client: Connection, url: str, headers: Mapping[str, str]
    ) -> Iterator[Answer]:
        try:
            with client.get(url, headers, within_s=self._seconds) as answer:
                yield answer
        except LateError:
            self._is_over = True
            raise

    @contextmanager
    def _by_httpx(
        self, client: httpx.Client, url: str, headers: Mapping[str, str]
    ) -> Iterator[Answer]:
        timer = threading.Timer(self._seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            with client.stream(
                "GET", url, headers=dict(headers), extensions={"trace": self._trace}
            ) as answer:
                timer.cancel()
                yield answer
        except httpx.HTTPError as error:
            if not self._is_over:
                raise
            told = f"no headers within {self._seconds:g} s"
            raise httpx.ReadTimeout(told, request=error.request) from error
        finally:
            timer.cancel()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Keep the connection's stream: httpcore tells of each one that it makes."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]

    def _end(self) -> None:
        self._is_over = True
        if self._stream is None:
            return  # still connecting, which httpx bounds
        connection = self._stream.get_extra_info("socket")
        with suppress(OSError):  # the other side was faster
            # not its own method: TLS would say goodbye to a peer that does not listen
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

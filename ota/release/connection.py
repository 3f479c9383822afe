"""HTTP as a device needs it: GET over one connection that is used again, and nothing else.

    with Connection(context, timeout_s=30) as line, line.get(url, {}) as answer:
        answer.status_code, b"".join(answer.iter_raw())

A look at a repository is eight small requests. Verifying what they bring takes a few milliseconds;
a general HTTP client, with its pools, hooks, cookies and redirects, took twice as long again on top
of it. The standard library's takes a tenth of that.

No redirects, no proxies, no cookies, no retries. A connection that lay idle is looked at before it
is used again: a server that has hung up meanwhile costs a new connection, not a failed request.
What of httpx stays is its errors (`ota.release.http`).

Source: RFC 9110 and RFC 9112, as `http.client` reads them.
"""

import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from wildflower.ota.release.http import LateError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK: Final = 1 << 16  # bytes
LEFT_OVER: Final = 1 << 12
"""Bytes of a body nobody wants that are read to its end, to keep the connection for what follows;
a page that says 404 has fewer."""
LEFT_OVER_S: Final = 0.5
"""Seconds that this may take: who drips is hung up on."""
HEADERS_S: Final = 60.0
"""Seconds for the headers of an answer; a satellite's need less than five. Each wait for bytes is
bounded, too, but their sum is not: a byte of a header every 29 seconds would hold a device for
weeks, and no chunk of a body ever comes at which somebody could look at the clock."""
SAFE: Final = "/%:@!$&'()*+,;=~"
"""What stays as it is in a path: what RFC 3986 allows there, and what is quoted already."""
USER_AGENT: Final = "wildflower"


@dataclass(frozen=True, slots=True)
class Place:
    """Whom a connection is to."""

    is_tls: bool
    host: str
    port: int


class Received:
    """A server's answer, whose body is read as it is wanted.

    Attributes:
        url: What was asked for.
        status_code: HTTP status.
        headers: By name, in any case.
        response: What it is read from.
    """

    def __init__(self, url: str, response: http.client.HTTPResponse) -> None:
        self.url = url
        self.status_code = response.status
        self.headers: Mapping[str, str] = response.headers  # type: ignore[assignment]  # is one
        self.response = response

    @property
    def is_read(self) -> bool:
        """Whether the whole body has been read."""
        return self.response.isclosed() or self.response.length == 0

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the body as it comes.

        Raises:
            httpx.HTTPError: It ended too early, is not framed as it says, or did not come in time.
        """
        with _translated():
            while not self.is_read and (piece := self.response.read1(CHUNK)):
                yield piece
            if missing := self.response.length:
                raise httpx.RemoteProtocolError(f"the body ended {missing} bytes too early")


class Connection:
    """Asks one server after the other; one request at a time, one connection at most.

    Args:
        context: Of TLS; None where nothing is asked for over TLS.
        timeout_s: Seconds that each wait may take: for a connection, for a piece of an answer.
        headers_s: Seconds in which the headers of an answer must have come, dripped or not.
    """

    def __init__(
        self, context: ssl.SSLContext | None, *, timeout_s: float, headers_s: float = HEADERS_S
    ) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._headers_s = headers_s
        self._connection: http.client.HTTPConnection | None = None
        self._place: Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Received]:
        """Ask for a URL; the answer is there when its headers are.

        Args:
            url: With http or https.
            headers: Beside Host and User-Agent.

        Raises:
            LateError: They have not come in time.
            httpx.HTTPError: It could not be had.
            httpx.InvalidURL: Not an address.
        """
        place, target = parsed(url)
        deadline = _Deadline(time.monotonic() + self._headers_s, self._timeout_s)
        try:
            with _translated(lambda: deadline.is_over, f"no headers within {self._headers_s:g} s"):
                connection = self._connected(place)
                connection.response_class = deadline.response  # type: ignore[assignment]  # is called
                connection.request("GET", target, headers={"User-Agent": USER_AGENT, **headers})
                response = connection.getresponse()
                deadline.end()
            answer = Received(url, response)
        except BaseException:
            self.close()
            raise
        try:
            yield answer
        finally:
            deadline.begin(LEFT_OVER_S)
            self._let_go(answer)

    def _let_go(self, answer: Received) -> None:
        """Keep the connection if nothing, or little, of the answer is left on it."""
        with suppress(httpx.HTTPError):
            if 0 < (answer.response.length or 0) <= LEFT_OVER:
                for _ in answer.iter_raw():
                    pass
        is_over = answer.response.will_close or not answer.is_read
        answer.response.close()
        if is_over:
            self.close()

    def _connected(self, place: Place) -> http.client.HTTPConnection:
        """Return a connection to a place, the one that is there if it is alive."""
        if self._connection is not None and self._place == place and _is_quiet(self._connection):
            return self._connection
        self.close()
        made = (
            http.client.HTTPSConnection(
                place.host, place.port, timeout=self._timeout_s, context=self._context
            )
            if place.is_tls
            else http.client.HTTPConnection(place.host, place.port, timeout=self._timeout_s)
        )
        self._connection, self._place = made, place
        try:
            made.connect()
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return made


def parsed(url: str) -> tuple[Place, str]:
    """Return whom to ask, and for what: a path with its query, quoted.

    Raises:
        httpx.UnsupportedProtocol: Neither http nor https.
        httpx.InvalidURL: Not an address.

    Example:
        >>> parsed("https://ota.example/tuf/1.root.json")[1]
        '/tuf/1.root.json'
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as resolving it will
    except ValueError as error:
        raise httpx.InvalidURL(f"{url!r}: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"{url!r} has neither 'http://' nor 'https://'")
    if not host or not host.isprintable() or " " in host:
        raise httpx.InvalidURL(f"{url!r} names no host")
    is_tls = parts.scheme == "https"
    target = quote(parts.path or "/", SAFE)
    query = f"?{quote(parts.query, SAFE + '?')}" if parts.query else ""
    return Place(is_tls, host, port or (443 if is_tls else 80)), target + query


class _Deadline:
    """A moment up to which reading may go on; each wait on its own is bounded too."""

    def __init__(self, moment: float, timeout_s: float) -> None:
        self._moment: float | None = moment
        self._timeout_s = timeout_s

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self._moment is not None and time.monotonic() >= self._moment

    def begin(self, seconds: float) -> None:
        """Bound all waits from now on together."""
        self._moment = time.monotonic() + seconds

    def end(self) -> None:
        """Bound each wait alone from now on."""
        self._moment = None

    def left_s(self) -> float:
        """Return for how many seconds the next wait may take.

        Raises:
            TimeoutError: For none.
        """
        if self._moment is None:
            return self._timeout_s
        left_s = self._moment - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return min(left_s, self._timeout_s)

    def response(
        self, connection: socket.socket, debuglevel: int = 0, method: str | None = None
    ) -> http.client.HTTPResponse:
        """Return a response that reads up to the deadline; a `response_class`."""
        found = http.client.HTTPResponse(connection, debuglevel, method)
        found.fp.close()
        raw = connection.makefile("rb", buffering=0)
        found.fp = io.BufferedReader(_Bounded(raw, connection, self))
        return found


class _Bounded(io.RawIOBase):
    """A connection's bytes, each wait for which is bounded by a deadline."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, deadline: _Deadline) -> None:
        self._raw, self._connection, self._deadline = raw, connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        self._connection.settimeout(self._deadline.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextmanager
def _translated(is_late: Callable[[], bool] = lambda: False, told: str = "") -> Iterator[None]:
    """Say with httpx's errors what went wrong on the line."""
    try:
        yield
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(f"{type(error).__name__}: {error}") from error
    except TimeoutError as error:
        if is_late():
            raise LateError(told) from error
        raise httpx.ReadTimeout(str(error)) from error
    except OSError as error:
        raise httpx.ReadError(str(error)) from error


def _is_quiet(connection: http.client.HTTPConnection) -> bool:
    """Whether nothing is to be read: neither the other side's goodbye nor what nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)

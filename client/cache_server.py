"""`wildflower cache serve`: a LAN's devices fetch a release once, over a narrow uplink.

    GET|HEAD /blobs/<sha256>              kept by digest, read through
    GET|HEAD /tuf/metadata/..., targets/  passed through, for seconds the same answer to all

Devices list it in `sources` before the server. It is trusted for nothing: plain HTTP will do,
because what counts is signed; a device refuses what a cache made up, tells, and asks the next
source. So it holds no key and no device's name, and any peer or gateway may run it.

Limits: connections, time, the paths above, one range, sizes. It asks its one upstream for nothing
else than its own clients ask of it.
"""

import logging
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import httpx

from wildflower.client.blob_cache import BlobCache
from wildflower.client.errors import AgentError
from wildflower.client.limited import LimitedThreads
from wildflower.ota.errors import FetchError, OtaError, RefusedError
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.download import Download
from wildflower.ota.release.fetch import HttpSource
from wildflower.ota.release.http import Line
from wildflower.ota.release.manifest import MAX_FILE, FileEntry
from wildflower.ota.release.trust import NotThereError

log = logging.getLogger(__name__)

BLOB: Final = re.compile(r"/blobs/([0-9a-f]{64})")
DOCUMENT: Final = re.compile(
    r"/(tuf/(?:metadata|targets)(?:/|%2F)[A-Za-z0-9][A-Za-z0-9._/%-]{0,300})"
)
RANGE: Final = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
MAX_DOCUMENT: Final = 5_000_000  # bytes; python-tuf's own limit for targets metadata
MAX_KEPT: Final = 32_000_000  # bytes of documents in memory
LIFE_S: Final = 5.0
"""So long a document is answered from memory: a fleet that looks at once costs one request."""
UPSTREAM_S: Final = 30.0
"""Seconds without a byte after which the server behind does not answer."""
CONNECTIONS: Final = 64
IDLE_S: Final = 15.0
"""Seconds after which a client that neither asks nor reads is let go."""


class HttpUpstream:
    """The server behind a cache: an `Upstream` over HTTP.

    Args:
        base: Its base URL.
        dial: Makes a connection; each request has its own, because several threads ask.
    """

    def __init__(self, base: str, dial: Callable[[], Line]) -> None:
        self._base = base.rstrip("/")
        self._dial = dial

    def length(self, digest: str) -> int:
        """Return how many bytes the server says a blob has."""
        url = f"{self._base}/blobs/{digest}"
        try:
            with (
                self._dial() as line,
                line.get(url, {"Accept-Encoding": "identity"}) as answer,
            ):
                status, told = answer.status_code, answer.headers.get("Content-Length", "")
        except httpx.HTTPError as error:
            raise FetchError(f"{url}: {type(error).__name__}: {error}") from error
        if status in (403, 404, 410):
            raise NotThereError(f"{url}: HTTP {status}")
        if status != 200 or not told.isdecimal() or not 1 <= int(told[:19]) <= MAX_FILE:
            raise FetchError(f"{url}: HTTP {status}, {told[:19] or 'no'} bytes")
        return int(told)

    def fetch(
        self, digest: str, length: int, destination: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Put a blob at its place, by the rules of a device's download."""
        entry = FileEntry("blob", digest[:12], digest, length)
        with self._dial() as line:
            Download(entry, destination, line, on_bytes=on_bytes).run([self._base])

    def document(self, path: str) -> bytes:
        """Return a small file.

        Raises:
            NotThereError: The server has none.
            FetchError: It does not answer.
            RefusedError: It is not small.
        """
        data = b""
        with self._dial() as line:
            for piece in HttpSource(line, self._base).read(path):
                data += piece
                if len(data) > MAX_DOCUMENT:
                    raise RefusedError(f"{path}: endless, at most {MAX_DOCUMENT} bytes")
        return data


class Documents:
    """Small files that are the same to all who ask within seconds. Safe for several threads."""

    def __init__(
        self, read: Callable[[str], bytes], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._turn = threading.Lock()
        self._flights: dict[str, threading.Lock] = {}
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def get(self, path: str) -> bytes:
        """Return a document; who asks while another fetches it waits for that one.

        Raises:
            NotThereError: There is none.
            FetchError: It cannot be had.
            RefusedError: It is too long.
        """
        with self._turn:
            flight = self._flights.setdefault(path, threading.Lock())
        try:
            with flight:
                return self._fresh(path)
        finally:
            with self._turn:
                if not flight.locked():
                    self._flights.pop(path, None)

    def _fresh(self, path: str) -> bytes:
        with self._turn:
            until_s, data = self._kept.get(path, (0.0, b""))
        if self._clock() < until_s:
            return data
        data = self._read(path)
        with self._turn:
            self._kept[path] = (self._clock() + LIFE_S, data)
            self._kept.move_to_end(path)
            while sum(len(kept) for _, kept in self._kept.values()) > MAX_KEPT:
                self._kept.popitem(last=False)
        return data


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered.

    Attributes:
        status: The HTTP status.
        length: Bytes of the body.
        body: Yields them.
        range: Value of Content-Range; "" for none.
    """

    status: int
    length: int
    body: Iterator[bytes]
    range: str = ""


def answer(path: str, asked: str, blobs: BlobCache, documents: Documents) -> Answer:
    """Return what a request for a path is answered.

    Args:
        path: As it was sent.
        asked: The Range header; "" for none. What is no single range is answered whole.
        blobs: The blobs.
        documents: Everything else.

    Raises:
        NotThereError: There is no such path.
        OtaError: It cannot be had now.
    """
    if found := BLOB.fullmatch(path):
        blob = blobs.find(found[1])
        return _part(asked, blob.length, blob.pieces)
    if (found := DOCUMENT.fullmatch(path)) and ".." not in path:
        data = documents.get(found[1])
        return _part(asked, len(data), lambda start, length: iter((data[start : start + length],)))
    raise NotThereError(path[:100])


def _part(asked: str, whole: int, pieces: Callable[[int, int], Iterator[bytes]]) -> Answer:
    found = RANGE.fullmatch(asked)
    if found is None:
        return Answer(200, whole, pieces(0, whole))
    start, last = int(found[1]), min(int(found[2] or whole), whole - 1)
    if start >= whole or last < start:
        return Answer(416, 0, iter(()), f"bytes */{whole}")
    length = last - start + 1
    return Answer(206, length, pieces(start, length), f"bytes {start}-{last}/{whole}")


class CacheServer(LimitedThreads, HTTPServer):
    """A cache that listens. `serve_forever` runs it, `shutdown` ends it."""

    request_queue_size = 128

    def __init__(self, place: tuple[str, int], blobs: BlobCache, documents: Documents) -> None:
        """Listen.

        Args:
            place: Host and port; port 0 takes a free one.
            blobs: The blobs.
            documents: Everything else.

        Raises:
            OSError: The port is in use, or not ours to listen on.
        """
        self.blobs, self.documents = blobs, documents
        super().__init__(place, _Request, connections=CONNECTIONS)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Say little: a device that hangs up is no error of ours."""
        log.debug("a connection ended early")


class _Request(BaseHTTPRequestHandler):
    server: CacheServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def _serve(self, *, with_body: bool) -> None:
        asked = self.headers.get("Range", "")
        try:
            found = answer(self.path, asked, self.server.blobs, self.server.documents)
        except NotThereError:
            found = Answer(404, 0, iter(()))
        except OtaError as error:
            log.warning("%s: %s", self.path[:100], error)
            found = Answer(502, 0, iter(()))
        self.send_response(found.status)
        self.send_header("Content-Length", str(found.length))
        if found.range:
            self.send_header("Content-Range", found.range)
        self.end_headers()
        if with_body:
            self._send(found.body)

    def _send(self, body: Iterator[bytes]) -> None:
        """Send a body; one that ends early ends the connection, so that it is seen to be cut."""
        try:
            for piece in body:
                self.wfile.write(piece)
        except FetchError as error:
            log.warning("%s: cut: %s", self.path[:100], error)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the standard library's
        log.debug(format, *args)


def run_cache(
    directory: Path,
    place: tuple[str, int],
    upstream: str,
    *,
    max_bytes: int,
    ca: Path | None,
    until: Callable[[], object],
) -> None:
    """Serve until told to end.

    Args:
        directory: Where blobs lie, and nothing else.
        place: Host and port to listen on.
        upstream: Base URL of the server behind the cache.
        max_bytes: What blobs may take together.
        ca: The server's CA, PEM; None for those that this machine trusts.
        until: Returns when the cache shall end.

    Raises:
        AgentError: The directory, the address or the CA cannot be used.
    """
    try:
        verify = ssl.create_default_context(cafile=str(ca)) if ca else ssl.create_default_context()
        behind = HttpUpstream(upstream, lambda: Connection(verify, timeout_s=UPSTREAM_S))
        blobs = BlobCache(directory, max_bytes, behind)
        with CacheServer(place, blobs, Documents(behind.document)) as server:
            log.info("cache serves", extra={"port": server.server_address[1]})
            worker = threading.Thread(target=server.serve_forever, name="cache", daemon=True)
            worker.start()
            until()
            server.shutdown()
    except OSError as error:
        raise AgentError(
            f"no cache in {directory} at {place[0]}:{place[1]}: {error.strerror or error}",
            hint="Is the port free, the directory writable, the CA a PEM file?",
        ) from error

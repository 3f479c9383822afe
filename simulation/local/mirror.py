"""A hostile mirror: it serves what the real server serves, with one lie.

It stands between a device and the server, as a captured cache in a LAN would, and writes nothing
anywhere. What it can do is what TUF is there for: a device must refuse it and go on elsewhere.
"""

import json
import ssl
import threading
from enum import StrEnum, unique
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx


@unique
class Lie(StrEnum):
    """What the mirror changes."""

    FLIPPED_BYTE = "flipped-byte"
    WRONG_SIGNATURE = "wrong-signature"


def tell(lie: Lie, path: str, body: bytes) -> bytes:
    """Return what the mirror answers instead of `body`.

    A flipped byte hits the middle of every blob; a wrong signature hits the metadata that says
    what is new, so that the lie is the first thing a device sees.
    """
    if lie is Lie.FLIPPED_BYTE and path.startswith("/blobs/") and body:
        middle = len(body) // 2
        return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if lie is Lie.WRONG_SIGNATURE and path.endswith("timestamp.json"):
        return _with_wrong_signature(body)
    return body


def _with_wrong_signature(metadata: bytes) -> bytes:
    try:
        document = json.loads(metadata)
        first = document["signatures"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return metadata
    first["sig"] = ("1" if first["sig"][0] == "0" else "0") + first["sig"][1:]
    return json.dumps(document).encode()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a device that hangs up on a liar is no error of ours."""


class HostileMirror:
    """Serves one lie over HTTP on a free loopback port, as a context manager.

    Attributes:
        url: Its base URL, for a device's list of sources.
        told: Paths it lied about so far.
    """

    def __init__(self, lie: Lie, origin: str, ca_file: str) -> None:
        self.lie = lie
        self.told: list[str] = []
        self._origin = origin
        self._ca_file = ca_file
        self._server = _QuietServer(("127.0.0.1", 0), self._request_class())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[int, bytes]:
        """Fetch `path` from the real server and lie about it."""
        context = ssl.create_default_context(cafile=self._ca_file)
        try:
            response = httpx.get(self._origin + path, verify=context)
        except httpx.TransportError:
            return 502, b""
        body = tell(self.lie, path, response.content)
        if body != response.content:
            self.told.append(path)
        return response.status_code, body

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = mirror.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing: http.server would print every request."""

        return Request

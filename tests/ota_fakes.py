"""Releases without a model in them, a repository to publish them in, and a server with faults.

The keys, signatures and metadata are real; the server speaks HTTP on a free loopback port and does
wrong exactly what its `Faults` say, so that a test can tell what a client makes of it.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self
from urllib.parse import unquote

from wildflower.ota.release import signing
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.keys import ROLLOUT, RoleKeys, generate_roles
from wildflower.ota.release.manifest import (
    FileEntry,
    Lineage,
    Release,
    Requirement,
    TrialBudget,
    target_path,
)
from wildflower.ota.release.repository import Changes, Repository
from wildflower.ota.rollout.document import Order, RolloutDocument, document_path

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLASS = "linux-generic"
GROUP = f"digits.{CLASS}"
LIFE = timedelta(days=30)


def file_entry(data: bytes, *, role: str = "model", name: str = "model.onnx") -> FileEntry:
    """Return the entry of a file with this content."""
    return FileEntry(role, name, hashlib.sha256(data).hexdigest(), len(data))


def release_of(data: bytes, order: int = 1, **changes: Any) -> Release:
    """Return a release of one file; `changes` replace fields of the manifest."""
    release = Release(
        model_name="digits",
        target_group=GROUP,
        order=order,
        files=(file_entry(data),),
        requires=Requirement(CLASS, "onnxruntime", "1.20", "2", 17, "0.0.1", 1, 1),
        trial=TrialBudget(1e-3, 1.0, 1000.0, 2**33),
        lineage=Lineage("ab" * 32, "t1", 3, "cd" * 32),
        not_before=NOON,
    )
    return replace(release, **changes)


def document_for(one: Release, *, role: str = "auto", **changes: Any) -> RolloutDocument:
    """Return a document that offers a release to everybody; `changes` replace its fields."""
    found = RolloutDocument(
        rollout="r1",
        target_group=one.target_group,
        order=Order.INSTALL,
        release_path=target_path(role, one.target_group, one.order),
        release=one.digest,
        salt="00" * 16,
        permille=1000,
        not_before=NOON,
        window_s=0,
    )
    return replace(found, **changes)


class ThiefsRepository(Repository):
    """What somebody writes who has stolen online keys: nothing is verified before."""

    def _verify(self, *_: object) -> None: ...


@cache
def _made(now: datetime) -> tuple[Mapping[str, RoleKeys], Mapping[str, bytes]]:
    """Make keys and an empty repository once; return the keys and the files, by relative path."""
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        keys = generate_roles(directory / "keys", directory / "signer" / "key.pem")
        Repository(directory / "tuf").create(keys, now)
        return keys, {
            str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }


class Origin:
    """A TUF repository and blobs by digest. All origins of one day have the same keys.

    Attributes:
        keys: The signers of every role.
        repository: What is published.
        root: What devices pin.
        blobs: Files of releases.
        now: Its clock.
    """

    def __init__(self, directory: Path, now: datetime = NOON) -> None:
        self.directory = directory
        self.keys, files = _made(now)
        for name, data in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
            (directory / name).chmod(0o600)
        self.repository = Repository(directory / "tuf")
        self.now = now
        self.root = self.repository.root
        self.blobs: dict[str, bytes] = {}

    def publish(
        self, data: bytes, order: int = 1, *, role: str = "auto", **changes: Any
    ) -> Release:
        """Sign a release of one file, publish it and return it."""
        release = release_of(data, order, **changes)
        path = target_path(role, release.target_group, release.order)
        self.put(f"models/{role}", path, release.to_bytes())
        self.blobs[release.artifact.digest] = data
        return release

    def roll_out(self, found: Release, *, role: str = "auto", **changes: Any) -> RolloutDocument:
        """Publish a rollout document for a release."""
        document = document_for(found, role=role, **changes)
        self.put(ROLLOUT, document_path(found.target_group), document.to_bytes())
        return document

    def put(self, role: str, path: str, data: bytes) -> None:
        """Sign any bytes as a target of a role and publish them."""
        metadata = signing.put_target(
            self.repository.current(role),
            path,
            data,
            self.keys[role].signers,
            expires=self.now + LIFE,
        )
        self.repository.publish(Changes({role: metadata}, {path: data}), self.keys, self.now)

    def read(self, path: str) -> bytes | None:
        """Return what a static server would answer; None for 404."""
        name = unquote(path).removeprefix("/")
        if name.startswith("blobs/"):
            return self.blobs.get(name.removeprefix("blobs/"))
        file = self.directory / name
        return file.read_bytes() if name.startswith("tuf/") and file.is_file() else None


@dataclass
class Faults:
    """What a server does wrong.

    Attributes:
        cut: Bytes of a blob after which the connection ends; 0 for none.
        corrupt: How many answers with a blob get a flipped byte, from the first; -1 for all.
        wrong_range: Whether a resumed answer begins seven bytes too early.
        ignores_range: Whether every answer is the whole file.
        endless: Whether blobs do not end; their length is not told.
        liar: Bytes added to the Content-Length of blobs.
        unframed: Whether answers with blobs end with the connection; their length is not told.
        encoding: What answers with blobs say they are packed with; "" for nothing.
        stall: Bytes of a blob after which nothing comes any more; 0 for never.
        location: Where answers to requests for blobs redirect to; "" for nowhere.
        busy: How many requests for blobs are answered with `busy_status`.
        busy_status: The status meanwhile.
        retry_after: What a busy server's Retry-After says; "" for none.
        wrong_signature: Whether the timestamp's signature is another one.
        endless_metadata: Whether the timestamp does not end.
        metadata_status: The status of every answer with metadata.
        stale: Path and bytes that are served instead of what is published.
    """

    cut: int = 0
    corrupt: int = 0
    wrong_range: bool = False
    ignores_range: bool = False
    endless: bool = False
    liar: int = 0
    unframed: bool = False
    encoding: str = ""
    stall: int = 0
    location: str = ""
    busy: int = 0
    busy_status: int = 503
    retry_after: str = ""
    wrong_signature: bool = False
    endless_metadata: bool = False
    metadata_status: int = 200
    stale: dict[str, bytes] = field(default_factory=dict)


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients here are expected to hang up."""


class Readable(Protocol):
    """What a server can serve."""

    def read(self, path: str) -> bytes | None:
        """Return what a static server would answer; None for 404."""
        ...


class FaultServer:
    """Serves an origin with faults, as a context manager.

    Attributes:
        url: Its base URL.
        faults: What it does wrong; may be changed between requests.
        asked: (path, value of Range) of every request, in order.
        served: Bytes of blobs that were sent.
    """

    def __init__(self, origin: Readable, **faults: Any) -> None:
        self.origin = origin
        self.faults = Faults(**faults)
        self.asked: list[tuple[str, str]] = []
        self.served = 0
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def blob_requests(self) -> list[str]:
        """Return the Range of every request for a blob."""
        return [ranged for path, ranged in self.asked if path.startswith("/blobs/")]


def http_client() -> Connection:
    """Return what asks as a device does."""
    return Connection(None, timeout_s=10)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _with_wrong_signature(metadata: bytes) -> bytes:
    document = json.loads(metadata)
    first = document["signatures"][0]
    first["sig"] = ("1" if first["sig"][0] == "0" else "0") + first["sig"][1:]
    return json.dumps(document).encode()


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as every server does that sends headers and bodies apart

        def do_GET(self) -> None:
            ranged = self.headers.get("Range", "")
            server.asked.append((self.path, ranged))
            data = server.faults.stale.get(self.path, server.origin.read(self.path))
            if data is None:
                self._answer(404, b"")
            elif self.path.startswith("/blobs/"):
                self._blob(data, ranged)
            else:
                self._metadata(data)

        def _metadata(self, data: bytes) -> None:
            if self.path.endswith("timestamp.json") and server.faults.wrong_signature:
                data = _with_wrong_signature(data)
            if self.path.endswith("timestamp.json") and server.faults.endless_metadata:
                data += b" " * 1_000_000
            self._answer(server.faults.metadata_status, data)

        def _blob(self, data: bytes, ranged: str) -> None:
            faults = server.faults
            if faults.location:
                self._answer(302, b"", {"Location": faults.location})
                return
            if faults.busy:
                faults.busy -= 1
                wait = {"Retry-After": faults.retry_after} if faults.retry_after else {}
                self._answer(faults.busy_status, b"", wait)
                return
            if faults.corrupt:
                faults.corrupt -= 1
                data = _flipped(data)
            begin = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
            if faults.ignores_range or not ranged:
                self._send(200, data, {})
            elif begin >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            else:
                first = max(0, begin - 7) if faults.wrong_range else begin
                told = f"bytes {first}-{len(data) - 1}/{len(data)}"
                self._send(206, data[first:], {"Content-Range": told})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            faults = server.faults
            if faults.endless:
                self._endless(body)
                return
            sent = body[: faults.cut or faults.stall or len(body)]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if faults.encoding:
                self.send_header("Content-Encoding", faults.encoding)
            if faults.unframed:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body) + faults.liar))
            self.end_headers()
            server.served += len(sent)  # first: who has it all may be faster than this thread
            self.wfile.write(sent)
            if faults.stall and len(sent) < len(body):
                self.connection.recv(1)  # comes back when the client has had enough
            if len(sent) < len(body):
                self._hang_up()

        def _endless(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            with suppress(OSError):  # at some point the client has had enough
                while server.served < 100_000_000:
                    self.wfile.write(body)
                    server.served += len(body)
            self.close_connection = True

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # a client that refuses a body leaves in the middle of it
                self.wfile.write(body)

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    return Request

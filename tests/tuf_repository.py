"""A TUF repository in memory, made with python-tuf's Metadata API, and a server for its files.

Nothing here keeps anybody from lying: what a test puts into `files` is served.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP: Final = ("root", "timestamp", "snapshot", "targets")


def signed(document: Signed, signers: Iterable[Signer]) -> bytes:
    metadata: Metadata[Any] = Metadata(document)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


class TufRepository:
    """What a repository says, and the files in which it says so.

    Attributes:
        files: Contents by path: "metadata/1.root.json", "targets/<digest>.name".
        root, timestamp, snapshot, targets: What is signed next; `targets` by role name.
        signers: Who signs for a role.
        hashed: Whether metadata names the lengths and digests of other metadata.
    """

    def __init__(
        self,
        now: datetime,
        *,
        consistent: bool = True,
        make_key: Callable[[], CryptoSigner] = CryptoSigner.generate_ed25519,
    ) -> None:
        self.expires = now + timedelta(days=30)
        self.files: dict[str, bytes] = {}
        self.hashed = False
        self.make_key = make_key
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.root = Root(expires=self.expires, consistent_snapshot=consistent)
        self.timestamp = Timestamp(expires=self.expires)
        self.snapshot = Snapshot(expires=self.expires)
        self.targets = {"targets": Targets(expires=self.expires)}
        for role in TOP:
            self.renew_keys(role)
        self._last_root_signers = self.signers["root"]
        self.first_root = self.put("root")
        for role in ("targets", "snapshot", "timestamp"):
            self.put(role)

    def renew_keys(self, role: str, count: int = 1, threshold: int = 0) -> list[CryptoSigner]:
        """Give a top-level role new keys in the next root; return the old ones."""
        old = self.signers.get(role, [])
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.signers[role] = [self.make_key() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = threshold or count
        return old

    def put(self, role: str, signers: Iterable[Signer] | None = None) -> bytes:
        """Sign a role as it is and write its file."""
        document = self.document(role)
        data = signed(document, self.signers[role] if signers is None else signers)
        self.files[f"metadata/{self.name(role, document.version)}"] = data
        return data

    def document(self, role: str) -> Signed:
        top: dict[str, Signed] = {
            "root": self.root, "timestamp": self.timestamp, "snapshot": self.snapshot,
        }  # fmt: skip
        return top.get(role) or self.targets[role]

    def name(self, role: str, version: int) -> str:
        versioned = role == "root" or (role != "timestamp" and self.root.consistent_snapshot)
        quoted = f"{quote(role, safe='')}.json"
        return f"{version}.{quoted}" if versioned else quoted

    def new_root(self, signers: Iterable[Signer] | None = None) -> bytes:
        """Publish the next root, signed by the last root's keys and its own unless told."""
        self.root.version += 1
        both = {s.public_key.keyid: s for s in (*self._last_root_signers, *self.signers["root"])}
        self._last_root_signers = self.signers["root"]
        return self.put("root", both.values() if signers is None else signers)

    def publish(self, *roles: str) -> None:
        """Publish targets roles in their next version, then snapshot and timestamp."""
        for role in roles:
            self.targets[role].version += 1
            self.list(role, self.put(role))
        self.publish_snapshot()

    def list(self, role: str, data: bytes) -> None:
        """Name a targets role in the next snapshot."""
        self.snapshot.meta[f"{role}.json"] = self._meta(self.targets[role].version, data)

    def publish_snapshot(self) -> None:
        self.snapshot.version += 1
        self.timestamp.snapshot_meta = self._meta(self.snapshot.version, self.put("snapshot"))
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.timestamp.version += 1
        self.put("timestamp")

    def _meta(self, version: int, data: bytes) -> MetaFile:
        if not self.hashed:
            return MetaFile(version)
        return MetaFile.from_data(version, data, ["sha256"])

    def delegate(
        self,
        parent: str,
        name: str,
        *,
        paths: Iterable[str] | None = ("*",),
        prefixes: Iterable[str] | None = None,
        terminating: bool = False,
        threshold: int = 1,
    ) -> None:
        """Add a delegation; the parent is to be published afterwards."""
        if name not in self.targets:
            self.targets[name] = Targets(expires=self.expires)
            self.signers[name] = [self.make_key() for _ in range(threshold)]
            self.list(name, self.put(name))
        above = self.targets[parent]
        if above.delegations is None:
            above.delegations = Delegations({}, {})
        assert above.delegations.roles is not None
        above.delegations.roles[name] = DelegatedRole(
            name,
            [],
            threshold,
            terminating,
            None if prefixes else [*(paths or ())],
            [*prefixes] if prefixes else None,
        )
        for signer in self.signers[name]:
            above.add_key(signer.public_key, name)

    def add_target(
        self, role: str, path: str, data: bytes, hashes: Iterable[str] = ("sha256",)
    ) -> str:
        """Add a target and its content; the role is to be published. Return its first place."""
        info = TargetFile.from_data(path, data, [*hashes])
        self.targets[role].targets[path] = info
        folder, slash, name = path.rpartition("/")
        places = [path]
        if self.root.consistent_snapshot:
            places = [f"{folder}{slash}{digest}.{name}" for digest in info.hashes.values()]
        for place in places:
            self.files[f"targets/{place}"] = data
        return f"targets/{places[0]}"


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that refuses a body leaves in its middle."""


class RepositoryServer:
    """Serves a repository's files on a free loopback port, as a context manager.

    Attributes:
        repository: What is served; may be replaced.
        statuses: Status codes by path, instead of the file.
        asked: The path of every request, as it came, in order.
    """

    def __init__(self, repository: TufRepository) -> None:
        self.repository = repository
        self.statuses: dict[str, int] = {}
        self.asked: list[str] = []
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.005}
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: RepositoryServer) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: two would wait for each other (Nagle)

        def do_GET(self) -> None:
            path = self.path.removeprefix("/")
            server.asked.append(path)
            body = server.repository.files.get(path)
            status = server.statuses.get(path, 404 if body is None else 200)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    return Request

"""A device that is attacked: it runs a release, and what it reads next comes from somebody else.

The device is the agent's own wiring (`tests.update_fakes.Kit`), the repository and all keys are
real. Between the two stands a server that serves what is published, with whatever an attacker puts
in its place; or one that is an attacker's own, with the keys that he has stolen.

What every attack has in common is said once, in `refused`: the error has a name, the server learns
of it by exactly one report however often the device looks, what ran goes on running and nothing is
half-written. `recovers` says the rest: the honest update afterwards goes through.
"""

import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from securesystemslib.signer import Signer
from tests.client_fakes import FakeServer, Releases, today
from tests.device_fakes import Bundle
from tests.ota_fakes import ThiefsRepository
from tests.update_fakes import Kit, offer

from wildflower.ota.device.journal import Entry
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import ReleaseError
from wildflower.ota.release import signing
from wildflower.ota.release.ceremony import Change
from wildflower.ota.release.keys import RoleKeys, generate_key
from wildflower.ota.release.repository import Changes
from wildflower.ota.rollout.document import RolloutDocument, document_path
from wildflower.server.key_ceremony import Ceremony

METADATA = "/tuf/metadata"
TIMESTAMP = f"{METADATA}/timestamp.json"
AGAIN = timedelta(minutes=6)
"""After so long a device tries again what it has refused once."""


def published(releases: Releases, path: str) -> bytes | None:
    """Return what a static server would answer; None for 404."""
    name = unquote(path).removeprefix("/")
    if name.startswith("blobs/"):
        return releases.blobs.get(name.removeprefix("blobs/"))
    file = releases.directory / name
    return file.read_bytes() if name.startswith("tuf/") and file.is_file() else None


class Mirror:
    """Serves what is published, with something else in some places; it has no keys.

    Attributes:
        instead: What is served in place of a path; None for 404.
    """

    def __init__(self, releases: Releases) -> None:
        self.releases = releases
        self.instead: dict[str, bytes | None] = {}

    def read(self, path: str) -> bytes | None:
        if path in self.instead:
            return self.instead[path]
        return published(self.releases, path)

    def freeze(self) -> None:
        """Serve from now on what is published now, whatever follows."""
        root = self.releases.directory / "tuf"
        frozen = {
            f"/tuf/{path.relative_to(root)}": path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        self.instead |= frozen


class Thief:
    """Serves a repository of his own: a copy of what is published, and what he signs beside it.

    Args:
        releases: What he copies; the keys that he has stolen are among its keys.
        directory: Where his copy lies.
    """

    def __init__(self, releases: Releases, directory: Path) -> None:
        shutil.copytree(releases.directory / "tuf", directory / "tuf")
        self.releases = releases
        self.directory = directory
        self.repository = ThiefsRepository(directory / "tuf")
        self.blobs: dict[str, bytes] = {}

    def read(self, path: str) -> bytes | None:
        name = unquote(path).removeprefix("/")
        if name.startswith("blobs/"):
            digest = name.removeprefix("blobs/")
            return self.blobs.get(digest, self.releases.blobs.get(digest))
        file = self.directory / name
        return file.read_bytes() if name.startswith("tuf/") and file.is_file() else None

    def put(
        self,
        role: str,
        path: str,
        data: bytes,
        *,
        signers: Sequence[Signer] | None = None,
        is_there: bool = True,
    ) -> None:
        """Sign a target of a role, by its own keys or others, and publish it by online keys."""
        metadata = signing.put_target(
            self.repository.current(role),
            path,
            data,
            self.releases.keys[role].signers if signers is None else signers,
            expires=today() + timedelta(days=1),
        )
        changes = Changes({role: metadata}, {path: data} if is_there else {})
        self.repository.publish(changes, self.releases.keys, today())

    def order(self, document: RolloutDocument) -> None:
        """Sign a rollout document by the stolen key."""
        self.put("rollout", document_path(document.target_group), document.to_bytes())


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@contextmanager
def dripping(mirror: Mirror, what: str) -> Iterator[str]:
    """Serve what a mirror does, some paths at 50 bytes a second; return the URL."""

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data, pause = mirror.read(self.path) or b"", threading.Event()
            begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
            drips = self.path.startswith(what)
            self.send_response(206 if begin else 200 if data else 404)
            self.send_header("Content-Length", str(len(data) - begin))
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            try:
                for piece in _pieces(data[begin:], 1 if drips else 1 << 20):
                    self.wfile.write(piece)
                    pause.wait(0.02 * drips)
            except OSError:
                self.close_connection = True  # the device has left

        def log_message(self, *_: object) -> None: ...

    with _served(Request) as url:
        yield url


@contextmanager
def _served(request: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), request)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """Listen, and answer nobody; return the URL."""
    ends = threading.Event()

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            while not ends.wait(0.01):  # until the device has had enough
                try:
                    gone = self.connection.recv(1, socket.MSG_DONTWAIT) == b""
                except BlockingIOError:
                    continue
                except OSError:
                    return
                if gone:
                    return

        def log_message(self, *_: object) -> None: ...

    with _served(Request) as url:
        yield url
        ends.set()


@dataclass
class Bench:
    """A device and its honest server.

    Attributes:
        server: It publishes; the device has enrolled with it.
        kit: The device.
        first: The release that the device runs.
        errors: What looks have raised since the attack began.
    """

    server: FakeServer
    kit: Kit
    first: Bundle
    errors: list[ReleaseError] = field(default_factory=list)

    @property
    def releases(self) -> Releases:
        return self.server.releases

    def look(self, url: str) -> None:
        """Let the device look at one source alone, twice."""
        self.kit.changes |= {"endpoints_device": url}
        with self.kit.on() as updates:
            for _ in range(2):
                try:
                    updates.look()
                except ReleaseError as error:
                    self.errors.append(error)

    def reports(self) -> list[Entry]:
        with self.kit.wired() as updates:
            return updates.journal.reports()

    def rotate(self, *roles: str) -> None:
        """Give roles new keys, as an operator does whose keys were stolen."""
        ceremony = Ceremony(self.releases.directory, today)
        keys = dict(self.releases.keys)
        for role in roles:
            name = role.replace("/", "-")
            fresh = generate_key(self.releases.directory / "keys" / f"{name}-fresh.pem")
            old = tuple(key.keyid for key in keys[role].public_keys)
            change = Change(role, (fresh.public_key,), old, 1)
            offline = [*keys["root"].signers, *keys["targets"].signers, fresh]
            bundle, _ = ceremony.propose(change).signed_by(offline)
            ceremony.publish(bundle)
            keys[role] = RoleKeys((fresh,))
        self.releases.keys = keys


def begin(
    server: FakeServer, directory: Path, order: int = 1, *, late: timedelta = timedelta()
) -> Bench:
    """Enrol a device, whose clock is late or early, and let it install the first release."""
    kit = Kit(server.enrol(directory), late=late)
    first = offer(server, order)
    kit.look()
    assert kit.running == first.digest
    return Bench(server, kit, first)


def refused(
    bench: Bench,
    attack: str,
    says: str,
    *,
    error: type[ReleaseError] | None,
    outcome: Outcome = Outcome.REFUSED,
) -> Entry:
    """Let the device meet an attack again and again; return the one report that it has written.

    Args:
        bench: The device.
        attack: URL of where it looks.
        says: What the report's sentence and the error's say, as a regular expression.
        error: What each look raises; None if it goes on, because it has decided and reported.
        outcome: What the report calls it.
    """
    before = bench.reports()
    for late in (timedelta(), timedelta(), AGAIN):
        bench.kit.late += late
        bench.look(attack)
    new = bench.reports()[len(before) :]
    assert [(one.outcome, bool(re.search(says, one.reason))) for one in new] == [(outcome, True)], (
        new
    )
    if error is None:
        assert bench.errors == []
    else:
        assert len(bench.errors) == 6
        assert {type(one) for one in bench.errors} == {error}
        assert all(re.search(says, str(one)) for one in bench.errors), bench.errors
    unharmed(bench)
    return new[0]


def unharmed(bench: Bench) -> None:
    """What ran goes on running, whole, and nothing is half-written."""
    slots = Slots(bench.kit.directory / "slots")
    assert slots.running() == bench.first.digest
    assert slots.is_complete(bench.first.release)
    whole = [slots.is_complete(one) for one in slots.releases()]
    assert all(whole)
    left = [path for path in slots.root.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(left) == len(whole), left
    for path in (bench.kit.directory / "downloads").glob("*"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name in (digest, f"{path.stem}.part"), "a torn file bears a file's name"


def recovers(bench: Bench, order: int = 9, **changes: Any) -> None:
    """The honest server's next release is installed, and told once."""
    bench.kit.changes.pop("endpoints_device", None)
    second = offer(bench.server, order, **changes)
    known = len(bench.reports())
    bench.kit.late += AGAIN
    bench.kit.look()
    bench.kit.look()
    assert bench.kit.running == second.digest
    assert [one.outcome for one in bench.reports()[known:]] == [Outcome.COMMITTED]


def edited(metadata: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """Return metadata with something changed in it; signatures stay as they were."""
    document: dict[str, Any] = json.loads(metadata)
    edit(document)
    return json.dumps(document).encode()


def sampled(names: Iterable[str], *ordinary: str) -> list[Any]:
    """Return names as parameters of a test; all but the ordinary ones for the slow suite."""
    return [
        name if name in ordinary else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]

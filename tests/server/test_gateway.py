"""The device HTTPS listener over real TLS: static files for all, Flower for the known."""

import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tests.flower_fakes import running_superlink
from tests.server_base_fakes import ANYWHERE, FakeDevice, tls_files, today

from wildflower.server import gateway
from wildflower.server.blobs import BlobStore
from wildflower.server.ca import Authority
from wildflower.server.flower_link import FlowerLink
from wildflower.server.gateway import KEY_HEADER, Fleet, create_app
from wildflower.server.listener import Listener
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Device
from wildflower.strategies.flower_compat.fleet import FleetConnection

BLOB = bytes(range(256)) * 40


class FakeSuperLink:
    """Answers Fleet calls as Flower would, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.calls.append((request.url.path, dict(request.headers), body))
        headers = {"flwr-package-version": "1.41.0", "Set-Cookie": "no=1"}
        if body == b"stream":
            return StreamingResponse(self.pieces(), headers=headers)
        return Response(b"reply:" + body[:20], self.status, headers, "application/protobuf")

    async def pieces(self) -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65_536


class World:
    """A gateway, what lies behind it, and a device in front of it."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority, self.directory = authority, directory
        self.store, self.blobs = MemoryStore(), BlobStore(directory / "blobs")
        self.device = FakeDevice.enrolled(authority, directory / "devices", self.store)
        self.superlink = FakeSuperLink()
        self.superlink_ca = directory / "inner" / "ca.pem"
        inner = Authority.make("superlink", today())
        files = tls_files(inner, directory / "inner", client_ca=False)
        self.inner = Listener(self.superlink.app, ANYWHERE, files)
        (directory / "tuf" / "metadata").mkdir(parents=True)
        (directory / "secret").write_text("not for you")
        self.tls = tls_files(authority, directory / "tls")

    @contextmanager
    def open(self, superlink: int) -> Iterator[Self]:
        """Serve devices; the SuperLink is expected on this port."""
        fleet = Fleet(self.store, f"127.0.0.1:{superlink}", self.superlink_ca)
        app = create_app(self.directory / "tuf", self.blobs, fleet)
        with Listener(app, ANYWHERE, self.tls) as self.listener:
            yield self

    def write(self, path: str, text: str = "{}") -> None:
        place = self.directory / "tuf" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def http(self, device: FakeDevice | None = None) -> httpx.Client:
        """Return a client; without a device one that shows no certificate."""
        ca = self.authority.certificate_pem
        bare = ssl.create_default_context(cadata=ca.decode())
        context = device.tls(ca) if device else bare
        return httpx.Client(base_url=f"https://127.0.0.1:{self.listener.port}", verify=context)

    def get(self, path: str, **headers: str) -> httpx.Response:
        with self.http() as http:
            return http.get(path, headers=headers)

    def call(
        self, name: str = "pull-messages", body: bytes = b"hello", device: FakeDevice | None = None
    ) -> httpx.Response:
        caller = device or self.device
        with self.http(caller) as http:
            headers = {KEY_HEADER: key_header(caller), "Cookie": "a=b", "flwr-signature": "s"}
            return http.post(f"/v1/fleet/{name}", content=body, headers=headers)


def key_header(device: FakeDevice) -> str:
    return base64.b64encode(public_key_to_bytes(device.key.public_key())).decode()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test", today())


@pytest.fixture(scope="module")
def served(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(authority, tmp_path_factory.mktemp("gateway"))
    with made.inner as inner, made.open(inner.port):
        yield made


@pytest.fixture
def world(served: World) -> World:
    """Return the one world of these tests, as new: starting listeners is what takes time."""
    served.superlink.calls.clear()
    served.superlink.status = 200
    served.store.put(served.device.record())
    return served


# Static files --------------------------------------------------------------------------------


def test_metadata_is_served_to_anybody(world: World) -> None:
    world.write("metadata/timestamp.json", '{"a": 1}')
    answer = world.get("/tuf/metadata/timestamp.json")
    assert answer.json() == {"a": 1}
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "metadata/1.root.json",
        "metadata/3.models/auto.json",
        f"targets/models/auto/digits.linux-generic/{'a' * 64}.3.json",
        f"targets/{'a' * 64}.top.json",
    ],
)
def test_names_with_version_or_digest_may_be_kept_for_ever(world: World, path: str) -> None:
    world.write(path)
    answer = world.get(f"/tuf/{path}")
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]


def test_a_role_name_with_a_quoted_slash_finds_its_file(world: World) -> None:
    world.write("metadata/3.models/auto.json", '{"role": "models/auto"}')
    answer = world.get("/tuf/metadata/3.models%2Fauto.json")
    assert answer.json() == {"role": "models/auto"}
    assert "immutable" in answer.headers["cache-control"]


def test_that_there_is_no_newer_root_is_not_kept(world: World) -> None:
    answer = world.get("/tuf/metadata/2.root.json")
    assert answer.status_code == 404
    assert answer.headers["cache-control"] == "no-cache"


def test_metadata_that_did_not_change_is_not_sent_again(world: World) -> None:
    world.write("metadata/timestamp.json")
    etag = world.get("/tuf/metadata/timestamp.json").headers["etag"]
    answer = world.get("/tuf/metadata/timestamp.json", **{"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["cache-control"] == "no-cache"


def test_a_blob_is_served_whole_and_may_be_kept(world: World) -> None:
    digest = world.blobs.put(BLOB)
    answer = world.get(f"/blobs/{digest}")
    assert answer.content == BLOB
    assert answer.headers["etag"] == f'"{digest}"'
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-length"] == str(len(BLOB))


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=100-199", 206, 100, 200),
        (f"bytes={len(BLOB) - 1}-", 206, len(BLOB) - 1, len(BLOB)),
        ("bytes=-5", 206, len(BLOB) - 5, len(BLOB)),
    ],
)
def test_a_part_of_a_blob_is_served(
    world: World, asked: str, status: int, start: int, end: int
) -> None:
    digest = world.blobs.put(BLOB)
    answer = world.get(f"/blobs/{digest}", Range=asked)
    assert answer.status_code == status
    assert answer.content == BLOB[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BLOB)}"


def test_a_part_beyond_the_end_is_refused(world: World) -> None:
    digest = world.blobs.put(BLOB)
    answer = world.get(f"/blobs/{digest}", Range=f"bytes={len(BLOB)}-")
    assert answer.status_code == 416


@pytest.mark.parametrize("name", ["0" * 64, "x", "0" * 63 + "G", "%2e%2e%2fsecret", "a" * 5000])
def test_what_is_no_blob_is_not_found(world: World, name: str) -> None:
    answer = world.get(f"/blobs/{name}")
    assert answer.status_code == 404


ESCAPES = [
    "/tuf/../secret",
    "/tuf/%2e%2e/secret",
    "/tuf/metadata/../../secret",
    "/tuf/metadata/%2e%2e%2f%2e%2e%2fsecret",
    "/tuf/..%5csecret",
    "/tuf//etc/passwd",
    "/tuf/%2fetc%2fpasswd",
    "/tuf/metadata/link",
    "/tuf/%00",
    "/blobs/../secret",
    "/v1/../secret",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_the_directories(world: World, path: str) -> None:
    link = world.directory / "tuf" / "metadata" / "link"
    if not link.is_symlink():
        link.symlink_to(world.directory / "secret")
    status, body = raw(world, f"GET {path} HTTP/1.1")
    assert status in (403, 404)
    assert b"not for you" not in body
    assert b"root:" not in body


def raw(world: World, line: str) -> tuple[int, bytes]:
    """Send a request line as it is: httpx would tidy the path."""
    context = ssl.create_default_context(cadata=world.authority.certificate_pem.decode())
    with (
        socket.create_connection(("127.0.0.1", world.listener.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer


def test_nothing_can_be_written(world: World) -> None:
    with world.http(world.device) as http:
        for path in ("/tuf/metadata/timestamp.json", f"/blobs/{'0' * 64}"):
            assert http.put(path, content=b"x").status_code == 405


# Flower --------------------------------------------------------------------------------------


def test_flwr_still_names_its_key_as_we_do() -> None:
    assert FLEET_HTTP_PUBLIC_KEY_HEADER == KEY_HEADER


def test_a_call_reaches_flower_and_its_answer_the_device(world: World) -> None:
    answer = world.call(body=b"hello")
    assert (answer.status_code, answer.content) == (200, b"reply:hello")
    assert answer.headers["content-type"] == "application/protobuf"
    assert answer.headers["flwr-package-version"] == "1.41.0"
    assert "set-cookie" not in answer.headers
    [(path, headers, body)] = world.superlink.calls
    assert (path, body) == ("/v1/fleet/pull-messages", b"hello")
    assert headers["flwr-signature"] == "s"
    assert headers[KEY_HEADER] == key_header(world.device)
    assert headers["content-length"] == "5"
    assert "cookie" not in headers


def test_large_bodies_pass_both_ways(world: World) -> None:
    body = bytes(5 << 20)
    assert world.call("push-object", body).status_code == 200
    assert world.superlink.calls[0][2] == body
    assert len(world.call("pull-object", b"stream").content) == 64 * 65_536


def test_a_body_of_unknown_length_passes(world: World) -> None:
    with world.http(world.device) as http:
        headers = {KEY_HEADER: key_header(world.device)}
        answer = http.post("/v1/fleet/get-run", content=iter([b"a", b"b"]), headers=headers)
    assert answer.content == b"reply:ab"


def test_without_a_certificate_flower_is_out_of_reach(world: World) -> None:
    with world.http() as http:
        headers = {KEY_HEADER: key_header(world.device)}
        answer = http.post("/v1/fleet/pull-messages", content=b"", headers=headers)
        assert http.get("/v1/anything").status_code == 403
    assert answer.status_code == 403
    assert "client certificate is required" in answer.json()["detail"]
    assert world.superlink.calls == []


def test_a_device_cannot_speak_as_another(world: World) -> None:
    other = FakeDevice.enrolled(world.authority, world.directory / "devices", world.store)
    with world.http(world.device) as http:
        for headers in (
            [(KEY_HEADER, key_header(other))],
            [(KEY_HEADER, key_header(world.device)), (KEY_HEADER, key_header(other))],
            [(KEY_HEADER, key_header(other)), (KEY_HEADER, key_header(world.device))],
            [(KEY_HEADER, "")],
            [(KEY_HEADER.encode(), "ü".encode())],
            [],
        ):
            answer = http.post("/v1/fleet/pull-messages", content=b"", headers=headers)
            assert answer.status_code == 403
            assert KEY_HEADER in answer.json()["detail"]
    assert world.superlink.calls == []


def test_a_revoked_device_is_refused_from_the_next_call_on(world: World) -> None:
    assert world.call().status_code == 200
    world.store.change(Device, world.device.device_id, revoked=True)
    assert world.call().status_code == 403
    assert len(world.superlink.calls) == 1


def test_a_device_that_was_never_stored_is_refused(world: World) -> None:
    ghost = FakeDevice.enrolled(world.authority, world.directory / "ghosts")
    answer = world.call(device=ghost)
    assert answer.status_code == 403
    assert "unknown or revoked" in answer.json()["detail"]


def test_a_certificate_of_another_ca_gets_no_answer(world: World) -> None:
    other = Authority.make("test", today())
    stranger = FakeDevice.enrolled(other, world.directory / "strangers", world.store)
    with pytest.raises(httpx.TransportError):
        world.call(device=stranger)
    assert world.superlink.calls == []


def test_a_key_that_is_not_ec_is_refused(world: World) -> None:
    device = FakeDevice.enrolled(world.authority, world.directory / "rsa", world.store)
    key = rsa.generate_private_key(65537, 2048)
    known = x509.load_pem_x509_certificate(device.certificate.encode())
    span = known.not_valid_before_utc, known.not_valid_after_utc
    builder = x509.CertificateBuilder(known.issuer, known.subject, key.public_key(), 1, *span)
    forged = builder.sign(world.authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (device.directory / "cert.pem").write_bytes(forged)
    (device.directory / "key.pem").write_bytes(pem)
    answer = world.call(device=device)
    assert answer.status_code == 403
    assert "no EC key" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet/a?x=1/../..",
        "/v1/fleet/Pull.Messages",
        "/docs",
    ],
)
def test_only_the_fleet_api_is_forwarded(world: World, path: str) -> None:
    with world.http(world.device) as http:
        headers = {KEY_HEADER: key_header(world.device)}
        request = httpx.Request(
            "POST", str(http.base_url).rstrip("/") + "/x", headers=headers, content=b"x"
        )
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = http.send(request)
    forwarded = [call[0] for call in world.superlink.calls]
    assert answer.status_code in (403, 404) or forwarded == ["/v1/fleet/a"]
    assert all(call.startswith("/v1/fleet/") for call in forwarded)


def test_a_401_of_flower_becomes_a_403(world: World) -> None:
    """Flower's client ends its own process on a 401."""
    world.superlink.status = 401
    assert world.call("send-node-heartbeat").status_code == 403


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_other_answers_pass_as_they_are(world: World, status: int) -> None:
    world.superlink.status = status
    assert world.call().status_code == status


def test_while_flower_is_down_devices_are_told_to_try_again(
    authority: Authority, tmp_path: Path
) -> None:
    world = World(authority, tmp_path)
    with world.inner as gone:
        pass
    with world.open(gone.port):
        answer = world.call()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_superlink_of_another_ca_is_not_spoken_to(authority: Authority, tmp_path: Path) -> None:
    world = World(authority, tmp_path)
    world.superlink_ca.write_bytes(Authority.make("superlink", today()).certificate_pem)
    with world.inner as inner, world.open(inner.port):
        assert world.call().status_code == 503
    assert world.superlink.calls == []


def test_a_call_that_is_too_long_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_CALL", 100)
    assert world.call(body=bytes(101)).status_code == 413
    with world.http(world.device) as http:
        headers = {KEY_HEADER: key_header(world.device)}
        endless = iter([bytes(60), bytes(60)])
        answer = http.post("/v1/fleet/push-object", content=endless, headers=headers)
    assert answer.status_code == 413
    assert world.superlink.calls == []
    assert world.call(body=bytes(100)).status_code == 200


def test_a_device_that_leaves_in_the_middle_of_a_call_harms_nobody(world: World) -> None:
    context = world.device.tls(world.authority.certificate_pem)
    head = (
        "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
        f"{KEY_HEADER}: {key_header(world.device)}\r\n\r\nhalf"
    )
    with (
        socket.create_connection(("127.0.0.1", world.listener.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(head.encode())
    assert world.call().status_code == 200
    assert json.loads(world.get("/v1/x").content)["detail"]


def test_flowers_own_client_gets_through_to_a_real_superlink(
    authority: Authority, tmp_path: Path
) -> None:
    with running_superlink(tmp_path / "flower") as real:
        world = World(authority, tmp_path)
        world.superlink_ca.write_bytes(real.ca_pem)
        node_id = FlowerLink(real.address, real.ca_pem, real.secret).register(
            world.device.public_key
        )
        with world.open(real.port):
            url = f"https://127.0.0.1:{world.listener.port}"
            tls = world.device.tls(authority.certificate_pem)
            with FleetConnection(url, tls=tls, key=world.device.key) as connection:
                assert connection.node_id == node_id
                assert connection.receive() is None
            real.stop()
            answer = world.call()
    assert answer.status_code == 503

"""Enrolment over real TLS: who gets in, who does not, and what it costs."""

import base64
import hashlib
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server_base_fakes import ANYWHERE, REPORT, Clock, csr_of, tls_files, today

from wildflower.ota.errors import FormatError
from wildflower.server import enrol
from wildflower.server.ca import Authority, device_id_of
from wildflower.server.enrol import MAX_BODY, Enrolment, EnrolRequest, Patience, create_app
from wildflower.server.errors import StoreError
from wildflower.server.listener import Listener
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Device, JoinToken
from wildflower.server.tokens import Invitation, mint
from wildflower.strategies.errors import UnreachableError

ROOT = b"root metadata"
ENDPOINTS = {"device": "https://127.0.0.1:8443", "channel": "127.0.0.1:8444"}


class FakeLink:
    """Flower's SuperLink, up or down."""

    def __init__(self) -> None:
        self.is_up = True
        self.nodes: dict[str, int] = {}

    def register(self, public_key: str) -> int:
        if not self.is_up:
            raise UnreachableError("the SuperLink is down")
        return self.nodes.setdefault(public_key, 2**63 + len(self.nodes))


class World:
    """An enrolment listener and what it works with."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority, self.clock = authority, Clock()
        self.store, self.link = MemoryStore(), FakeLink()
        self.enrolment = Enrolment(
            self.store,
            authority,
            root=ROOT,
            endpoints=ENDPOINTS,
            register=self.link.register,
            now=self.clock,
            days=7,
        )
        self.patience = Patience(failures=5)
        app = create_app(self.enrolment, now=self.clock, patience=self.patience)
        self.listener = Listener(app, ANYWHERE, tls_files(authority, directory, client_ca=False))
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.listener.port}"

    def invite(self, *, ring: str = "default", uses: int = 1, hours: float = 1) -> Invitation:
        invitation = Invitation.make(
            self.url,
            self.authority.digest,
            hashlib.sha256(ROOT).hexdigest(),
            entropy=hashlib.sha256(str(len(self.store.all(JoinToken))).encode()).digest(),
        )
        expires_at = self.clock() + timedelta(hours=hours)
        self.store.put(mint(invitation, ring=ring, uses=uses, expires_at=expires_at))
        return invitation

    def request(self, invitation: Invitation, **changes: object) -> dict[str, object]:
        asked: dict[str, object] = {
            "secret": invitation.secret,
            "csr": csr_of(self.key).decode(),
            "self_report": REPORT.to_bytes().decode(),
            "name": "bench",
        }
        return asked | changes

    def post(self, body: object) -> httpx.Response:
        context = ssl.create_default_context(cadata=self.authority.certificate_pem.decode())
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}/v1/enrol", content=content, verify=context)

    def device(self) -> Device:
        found = self.store.get(Device, device_id_of(self.key.public_key()))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test", today())


@pytest.fixture
def world(authority: Authority, tmp_path: Path) -> Iterator[World]:
    made = World(authority, tmp_path)
    with made.listener:
        yield made


def test_a_device_with_a_token_gets_an_identity(world: World) -> None:
    answer = world.post(world.request(world.invite(ring="lab")))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    device_id = device_id_of(world.key.public_key())
    assert told == {
        "device_id": device_id,
        "certificate": world.device().certificate,
        "device_class": "linux-x86_64-avx2",
        "root": base64.b64encode(ROOT).decode(),
        "endpoints": ENDPOINTS,
        "ring": "lab",
        "model": "",
    }
    certificate = x509.load_pem_x509_certificate(told["certificate"].encode())
    certificate.verify_directly_issued_by(world.authority.certificate)
    assert certificate.public_key() == world.key.public_key()
    device = world.device()
    assert (device.name, device.ring, device.running) == ("bench", "lab", "")
    assert device.node_id == world.link.nodes[device.public_key]
    assert device.self_report == REPORT.to_bytes()
    [event] = world.store.events()
    assert (event.kind, event.subject) == ("device.enrolled", device_id)


def test_the_ca_is_told_to_anybody_and_matches_the_token(world: World) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    pem = httpx.get(f"{world.url}/v1/ca", verify=context).text
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert digest == world.invite().ca


def test_a_man_in_the_middle_has_another_ca(world: World, tmp_path: Path) -> None:
    middle = World(Authority.make("test", today()), tmp_path / "middle")
    with middle.listener:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        pem = httpx.get(f"{middle.url}/v1/ca", verify=context).text
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        assert digest != world.invite().ca
        pinned = ssl.create_default_context(cadata=world.authority.certificate_pem.decode())
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.post(f"{middle.url}/v1/enrol", verify=pinned)


def test_a_device_without_a_name_is_called_by_its_id(world: World) -> None:
    world.post(world.request(world.invite(), name=""))
    assert world.device().name == world.device().device_id[:12]


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"type", "message", "hint"}
    return answer.status_code, error["type"], error["message"]


def test_an_unknown_token_is_refused(world: World) -> None:
    stranger = Invitation.make(world.url, "", "", entropy=b"\x07" * 32)
    status, kind, message = refusal(world.post(world.request(stranger)))
    assert (status, kind, message) == (403, "EnrolmentError", "the join token is unknown")


def test_a_secret_that_shares_its_id_with_a_token_opens_nothing(world: World) -> None:
    invitation = world.invite()
    [token] = world.store.all(JoinToken)
    world.store.put(replace(token, secret_digest="0" * 64))
    assert "unknown" in refusal(world.post(world.request(invitation)))[2]


def test_an_expired_token_is_refused_and_says_since_when(world: World) -> None:
    invitation = world.invite(hours=1)
    world.clock.pass_by(3600)
    status, _, message = refusal(world.post(world.request(invitation)))
    assert status == 403
    assert "expired at" in message
    assert world.store.all(Device) == []


def test_a_used_token_is_refused_for_another_key(world: World) -> None:
    invitation = world.invite(uses=1)
    assert world.post(world.request(invitation)).status_code == 200
    world.key = ec.generate_private_key(ec.SECP256R1())
    status, _, message = refusal(world.post(world.request(invitation)))
    assert (status, message) == (403, "the join token is used up")
    assert len(world.store.all(Device)) == 1


def test_a_token_for_several_devices_is_spent_device_by_device(world: World) -> None:
    invitation = world.invite(uses=2)
    for _ in range(2):
        world.key = ec.generate_private_key(ec.SECP256R1())
        assert world.post(world.request(invitation)).status_code == 200
    world.key = ec.generate_private_key(ec.SECP256R1())
    assert "used up" in refusal(world.post(world.request(invitation)))[2]


def test_a_device_whose_answer_got_lost_gets_the_same_again(world: World) -> None:
    invitation = world.invite(uses=1)
    first = world.post(world.request(invitation)).json()
    world.clock.pass_by(7200)
    assert world.post(world.request(invitation)).json() == first
    assert len(world.store.events()) == 1


def test_a_device_that_enrols_anew_keeps_what_others_know_of_it(world: World) -> None:
    world.post(world.request(world.invite()))
    world.store.change(Device, world.device().device_id, running="a" * 64)
    answer = world.post(world.request(world.invite(ring="lab"), name="new"))
    assert answer.status_code == 200
    device = world.device()
    assert (device.running, device.ring, device.name) == ("a" * 64, "lab", "new")
    assert answer.json()["certificate"] == device.certificate
    assert device.node_id == world.link.nodes[device.public_key]


def test_a_revoked_device_does_not_come_back_with_its_key(world: World) -> None:
    world.post(world.request(world.invite()))
    world.store.change(Device, world.device().device_id, revoked=True)
    status, _, message = refusal(world.post(world.request(world.invite())))
    assert status == 403
    assert "was revoked" in message
    assert world.device().revoked


def test_a_token_that_somebody_else_spends_first_is_used_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = world.invite()
    monkeypatch.setattr(world.store, "spend", lambda *_: None)
    assert "used up" in refusal(world.post(world.request(invitation)))[2]


MISTAKES: dict[str, tuple[dict[str, object], int, str, str]] = {
    "no csr": ({"csr": "nonsense"}, 403, "EnrolmentError", "not a certificate signing request"),
    "another curve": (
        {"csr": csr_of(ec.generate_private_key(ec.SECP384R1())).decode()},
        403,
        "EnrolmentError",
        "EC P-256",
    ),
    "no report": ({"self_report": "{}"}, 400, "FormatError", "self-report"),
    "a class it does not fit": (
        {"self_report": replace(REPORT, wanted_class="linux-x86_64-vnni").to_bytes().decode()},
        422,
        "IncompatibleError",
        "linux-x86_64-vnni",
    ),
    "a number for a name": ({"name": 7}, 400, "FormatError", "secret, csr, self_report and name"),
    "a long name": ({"name": "x" * 101}, 400, "FormatError", "at most 100"),
    "a name that moves the cursor": ({"name": "\x1b[2J"}, 400, "FormatError", "printable"),
    "half a character": ({"name": "\ud800"}, 400, "FormatError", "expected the texts"),
    "no secret": ({"secret": None}, 400, "FormatError", "expected the texts"),
}


@pytest.mark.parametrize(("change", "status", "kind", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_and_costs_no_token(
    world: World, change: dict[str, object], status: int, kind: str, said: str
) -> None:
    invitation = world.invite(uses=1)
    found = refusal(world.post(world.request(invitation, **change)))
    assert found[:2] == (status, kind)
    assert said in found[2]
    assert world.store.all(JoinToken)[0].uses_left == 1
    assert world.store.all(Device) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"null", b"[" * 10_000])
def test_what_is_no_request_is_refused(world: World, body: bytes) -> None:
    assert refusal(world.post(body))[:2] == (400, "FormatError")


def test_a_request_that_is_too_long_is_not_read(world: World) -> None:
    assert "at most 65536 bytes" in refusal(world.post(b" " * (MAX_BODY + 1)))[2]


def test_nothing_else_is_served(world: World) -> None:
    context = ssl.create_default_context(cadata=world.authority.certificate_pem.decode())
    with httpx.Client(base_url=world.url, verify=context) as http:
        for path in ("/", "/docs", "/openapi.json", "/v1/enrol", "/tuf/metadata/1.root.json"):
            assert http.get(path).status_code in (404, 405)


def test_who_fails_too_often_waits(world: World) -> None:
    stranger = Invitation.make(world.url, "", "", entropy=b"\x07" * 32)
    for _ in range(5):
        assert world.post(world.request(stranger)).status_code == 403
    answer = world.post(world.request(world.invite()))
    assert refusal(answer)[0] == 429
    assert answer.headers["retry-after"] == "60"
    world.clock.pass_by(60)
    assert world.post(world.request(world.invite())).status_code == 200


def test_a_disk_that_is_full_is_not_the_devices_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(world.store, "spend", full)
    for _ in range(6):
        assert refusal(world.post(world.request(world.invite())))[0] == 503


def test_a_device_that_leaves_in_the_middle_is_forgotten(world: World) -> None:
    context = ssl.create_default_context(cadata=world.authority.certificate_pem.decode())
    with (
        socket.create_connection(("127.0.0.1", world.listener.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    assert world.post(world.request(world.invite())).status_code == 200


def test_a_device_that_says_nothing_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol, "BODY_S", 0.05)
    context = ssl.create_default_context(cadata=world.authority.certificate_pem.decode())
    with (
        socket.create_connection(("127.0.0.1", world.listener.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert b" 408 " in connection.recv(1000)


def test_enrolment_does_not_wait_for_flower(world: World) -> None:
    world.link.is_up = False
    assert world.post(world.request(world.invite())).status_code == 200
    assert world.device().node_id == 0
    assert world.enrolment.register_missing() == 1
    world.link.is_up = True
    assert world.enrolment.register_missing() == 0
    assert world.device().node_id == world.link.nodes[world.device().public_key]


def test_a_revoked_device_is_not_registered_later(world: World) -> None:
    world.link.is_up = False
    world.post(world.request(world.invite()))
    world.store.change(Device, world.device().device_id, revoked=True)
    world.link.is_up = True
    assert world.enrolment.register_missing() == 0
    assert world.link.nodes == {}


def test_the_memory_of_failures_is_bounded() -> None:
    clock, patience = Clock(), Patience(failures=1, window_s=10, addresses=2)
    for address in ("a", "b", "c"):
        patience.count(address, clock())
    assert [patience.is_exhausted(name, clock()) for name in "abc"] == [False, True, True]
    clock.pass_by(10)
    patience.count("c", clock())
    assert patience.is_exhausted("c", clock())
    clock.pass_by(9)
    assert patience.is_exhausted("c", clock())


@settings(max_examples=100)
@given(
    st.binary(max_size=40)
    | st.dictionaries(
        st.sampled_from(["secret", "csr", "self_report", "name", "x"]),
        st.none() | st.text(max_size=5) | st.integers() | st.lists(st.none(), max_size=2),
    ).map(lambda body: json.dumps(body).encode())
)
def test_any_bytes_are_a_request_or_a_named_error(data: bytes) -> None:
    try:
        request = EnrolRequest.from_json(data)
    except FormatError:
        return
    assert isinstance(request.secret, str)
    assert "secret" not in repr(replace(request, csr="", self_report="", name=""))

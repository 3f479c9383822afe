"""First contact: who is trusted, what is sent when, and what a failure leaves behind."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client_fakes import SECRET, FakeServer, today

from wildflower.client import enrolment
from wildflower.client.config import load_config
from wildflower.client.enrolment import Answer, Enrolment, enrol, parse_token, read_answer
from wildflower.client.errors import (
    AgentError,
    ConfigError,
    EnrolmentError,
    JoinTokenError,
    UntrustedServerError,
)
from wildflower.client.identity import Identity
from wildflower.client.policy import Policy, load_policy
from wildflower.ota.device.profile import SelfReport
from wildflower.server.ca import Authority


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with FakeServer(tmp_path / "server") as found:
        yield found


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "server")


def test_a_device_enrols_and_pins_what_the_token_named(server: FakeServer, tmp_path: Path) -> None:
    directory = server.enrol(tmp_path / "device", app="task.py", sources=("http://mirror",))
    config, identity = load_config(directory), Identity.load(directory)
    assert config.device_id == identity.device_id
    assert (config.name, config.device_class, config.ring) == ("device", "linux-generic", "default")
    assert config.endpoints_device == server.url
    assert config.endpoints_channel == f"127.0.0.1:{server.channel_port}"
    assert (config.app, config.sources) == ("task.py", ("http://mirror",))
    assert identity.ca_pem == server.authority.certificate_pem
    assert identity.root == server.releases.root
    assert load_policy(directory) == Policy(release=("auto", "approved"))
    assert json.loads((directory / ".wildflower").read_text())["kind"] == "device"
    assert left_behind(tmp_path) == ["device"]


def test_the_request_tells_who_the_device_is_and_what_it_can(
    server: FakeServer, tmp_path: Path
) -> None:
    directory = server.enrol(tmp_path / "device", device_class="linux-x86_64-vnni")
    sent = server.enrolled[0]
    csr = x509.load_pem_x509_csr(sent["csr"].encode())
    report = SelfReport.from_bytes(sent["self_report"].encode())
    assert (sent["secret"], sent["name"]) == (SECRET, "device")
    assert csr.is_signature_valid
    assert csr.public_key() == Identity.load(directory).private_key.public_key()
    assert (report.wanted_class, bool(report.runtimes)) == ("linux-x86_64-vnni", True)


def test_a_model_that_the_server_names_is_kept(server: FakeServer, tmp_path: Path) -> None:
    server.answer = {"model": "digits"}
    assert load_config(server.enrol(tmp_path / "device")).target_group == "digits.linux-generic"


def test_a_directory_with_data_in_it_may_become_a_device(
    server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "examples.npz").write_bytes(b"data")
    directory = server.enrol(tmp_path / "device")
    assert (directory / "examples.npz").read_bytes() == b"data"
    assert Identity.load(directory).device_id == load_config(directory).device_id


@pytest.mark.parametrize("name", ["policy.toml", "identity"])
def test_what_lies_there_already_is_never_overwritten(
    server: FakeServer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / name).write_text("mine")
    with pytest.raises(AgentError, match=f"there is a {name} already"):
        server.enrol(tmp_path / "device")
    assert (tmp_path / "device" / name).read_text() == "mine"
    assert left_behind(tmp_path / "device") == [name]
    assert left_behind(tmp_path) == ["device"]


def test_an_enrolled_device_is_not_enrolled_again(server: FakeServer, tmp_path: Path) -> None:
    directory = server.enrol(tmp_path / "device")
    key = (directory / "identity" / "key.pem").read_bytes()
    with pytest.raises(AgentError, match="already holds an enrolled device"):
        server.enrol(directory)
    assert (directory / "identity" / "key.pem").read_bytes() == key
    assert len(server.enrolled) == 1


def test_a_man_in_the_middle_is_found_before_anything_is_sent(
    server: FakeServer, tmp_path: Path
) -> None:
    honest = Authority.make("honest", today())
    token = server.token(ca=honest.digest)
    with pytest.raises(UntrustedServerError, match=r"its CA is \w{12}, expected \w{12}"):
        enrol(token, Enrolment(tmp_path / "device", "device"))
    assert server.enrolled == []
    assert left_behind(tmp_path) == []


def test_a_server_that_shows_the_right_authority_and_has_another_ones_certificate_is_found(
    tmp_path: Path,
) -> None:
    honest = Authority.make("honest", today())
    with FakeServer(tmp_path / "server") as server:
        token = server.token(ca=honest.digest)
        server.authority = honest  # it copied what everybody may have, and lacks the key
        with pytest.raises(UntrustedServerError, match="not signed by the CA of the join token"):
            enrol(token, Enrolment(tmp_path / "device", "device"))
        assert server.enrolled == []
    assert left_behind(tmp_path) == []


def test_another_root_of_trust_is_refused(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(UntrustedServerError, match=r"the TUF root is \w{12}, the join token says"):
        enrol(server.token(root="cd" * 32), Enrolment(tmp_path / "device", "device"))
    assert left_behind(tmp_path) == []


def test_a_certificate_of_another_authority_is_refused(server: FakeServer, tmp_path: Path) -> None:
    other = Authority.make("other", today())
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for authority, told in (
        (other, "not signed by the server's CA"),
        (server.authority, "another key"),
    ):
        server.answer = {"certificate": authority.issue_device(pem, today(), 1).certificate}
        with pytest.raises(UntrustedServerError, match=told):
            server.enrol(tmp_path / "device")
    assert left_behind(tmp_path) == []


def test_a_spent_or_expired_token_is_told_in_the_servers_words(
    server: FakeServer, tmp_path: Path
) -> None:
    server.refuse = "the join token expired at noon"
    with pytest.raises(EnrolmentError, match="the join token expired at noon") as error:
        server.enrol(tmp_path / "device")
    assert error.value.hint == "Ask again."
    assert left_behind(tmp_path) == []


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "no endpoints": ({"endpoints": None}, "lacks"),
    "no root": ({"root": 5}, "holds no TUF root"),
    "an endpoint that is none": (
        {"endpoints": {"device": "ftp://host", "channel": "host:1"}},
        "endpoints_device = 'ftp://host' is not allowed",
    ),
    "a name that is none": ({"ring": "\x1b[2J"}, "ring = .* is not allowed"),
}


@pytest.mark.parametrize(("answer", "told"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_cannot_be_used_leaves_nothing(
    server: FakeServer, tmp_path: Path, answer: dict[str, Any], told: str
) -> None:
    server.answer = answer
    with pytest.raises(EnrolmentError, match=told):
        server.enrol(tmp_path / "device")
    assert left_behind(tmp_path) == []


def test_a_wish_that_is_not_allowed_costs_no_token(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"poll_s = 0\.0 is not allowed"):
        server.enrol(tmp_path / "device", poll_s=0.0)
    with pytest.raises(ConfigError, match="release = "):
        server.enrol(tmp_path / "device", policy=Policy(release=("software",)))
    assert (server.asked, server.enrolled) == ([], [])


def test_a_directory_that_cannot_be_written_leaves_no_identity(
    server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AgentError, match="cannot be written") as error:
        server.enrol(tmp_path / "file" / "device")
    assert "Nothing was enrolled" in error.value.hint


def test_a_server_that_is_down_is_told(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "server") as server:
        token = server.token()
    with pytest.raises(EnrolmentError, match="cannot be reached"):
        enrol(token, Enrolment(tmp_path / "device", "device"))


def test_a_server_that_never_stops_talking_is_left(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "MAX_ANSWER", 100)
    with pytest.raises(EnrolmentError, match="more than 100 bytes"):
        server.enrol(tmp_path / "device")


def test_a_server_without_a_certificate_is_not_ours(server: FakeServer, tmp_path: Path) -> None:
    server.faults.down = True
    with pytest.raises(UntrustedServerError, match="did not answer with a certificate"):
        server.enrol(tmp_path / "device")


def token(**changes: Any) -> str:
    body: dict[str, Any] = {
        "url": "https://host:8442",
        "secret": "s" * 43,
        "ca": "ab" * 32,
        "root": "cd" * 32,
    }
    return "wf1." + base64.urlsafe_b64encode(json.dumps(body | changes).encode()).decode()


def test_a_token_is_read_with_or_without_its_padding() -> None:
    found = parse_token(f" {token()}\n")
    assert found == parse_token(token().rstrip("="))
    assert (found.url, found.ca, found.root) == ("https://host:8442", "ab" * 32, "cd" * 32)
    assert "s" * 43 not in repr(found)


TOKENS = {
    "nothing": "",
    "another kind": "wf2." + token()[4:],
    "cut": token()[:60],
    "not base64": "wf1.!!!!",
    "not JSON": "wf1." + base64.urlsafe_b64encode(b"hello").decode(),
    "a list": "wf1." + base64.urlsafe_b64encode(b"[1]").decode(),
    "too long": token(url="https://" + "h" * 3000),
    "deep": "wf1." + base64.urlsafe_b64encode(b"[" * 1200).decode(),
    "plain HTTP": token(url="http://host"),
    "no secret": token(secret=""),
    "short digest": token(ca="ab"),
    "no text": token(root=5),
    "no ASCII": "wf1.é",
}


@pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS)
def test_what_is_no_token_is_told_without_showing_it(text: str) -> None:
    with pytest.raises(JoinTokenError) as error:
        parse_token(text)
    assert "device invite" in error.value.hint
    assert "s" * 43 not in str(error.value)


@settings(max_examples=200)
@given(st.integers(0, 300), st.text(max_size=3))
def test_a_damaged_token_is_an_error_or_a_token(place: int, noise: str) -> None:
    text = token()
    try:
        found = parse_token(text[:place] + noise + text[place + len(noise) :])
    except JoinTokenError:
        return
    assert found.url.startswith("https://")


REFUSALS: dict[str, tuple[int, bytes, str]] = {
    "no JSON": (502, b"<html>", "answered 502 without JSON"),
    "no error in it": (403, b"{}", "the server answered 403"),
    "an error that is none": (403, b'{"error": "no"}', "the server answered 403"),
    "a list": (500, b"[]", "the server answered 500"),
    "a list for success": (200, b"[]", "is not an object"),
}


@pytest.mark.parametrize(("status", "body", "told"), REFUSALS.values(), ids=REFUSALS)
def test_answers_that_are_none_are_told(status: int, body: bytes, told: str) -> None:
    with pytest.raises(EnrolmentError, match=told):
        read_answer(Answer(status, body))


@settings(max_examples=100)
@given(st.sampled_from([200, 403]), st.binary(max_size=80))
def test_any_answer_is_one_or_an_error(status: int, body: bytes) -> None:
    try:
        assert isinstance(read_answer(Answer(status, body)), dict)
    except EnrolmentError as error:
        assert str(error)  # noqa: PT017  an answer is fine too

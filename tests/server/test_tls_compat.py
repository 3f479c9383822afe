"""What we ask of uvicorn beyond its promises, and our listener around it."""

import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.server_base_fakes import ANYWHERE, FakeDevice, csr_of, tls_files, today
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wildflower.server.ca import Authority
from wildflower.server.errors import StartError
from wildflower.server.listener import Listener, Place, TlsFiles, bind
from wildflower.server.tls_compat import PeerCertificateProtocol, peer_certificate


async def who(request: Request) -> JSONResponse:
    certificate = peer_certificate(request.scope)
    name = certificate.subject.rfc4514_string() if certificate else ""
    return JSONResponse({"peer": name})


APP = Starlette(routes=[Route("/", who)])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test", today())


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> TlsFiles:
    return tls_files(authority, tmp_path / "tls")


def test_uvicorn_still_has_what_the_protocol_reaches_into() -> None:
    assert "on_message_begin" in vars(HttpToolsProtocol)
    assert issubclass(PeerCertificateProtocol, HttpToolsProtocol)


def test_every_request_of_a_connection_knows_its_peer(
    authority: Authority, tls: TlsFiles, tmp_path: Path
) -> None:
    device = FakeDevice.enrolled(authority, tmp_path)
    context = device.tls(authority.certificate_pem)
    with (
        Listener(APP, ANYWHERE, tls) as listener,
        httpx.Client(base_url=f"https://127.0.0.1:{listener.port}", verify=context) as http,
    ):
        answers = [http.get("/").json() for _ in range(3)]
    assert answers == [{"peer": f"CN={device.device_id}"}] * 3


def test_a_client_without_a_certificate_is_nobody(authority: Authority, tls: TlsFiles) -> None:
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    with Listener(APP, ANYWHERE, tls) as listener:
        answer = httpx.get(f"https://localhost:{listener.port}/", verify=context)
    assert answer.json() == {"peer": ""}


def test_a_plain_listener_knows_nobody() -> None:
    with Listener(APP, ANYWHERE, None) as listener:
        assert httpx.get(f"http://127.0.0.1:{listener.port}/").json() == {"peer": ""}


def test_a_scope_without_the_extension_is_nobody() -> None:
    assert peer_certificate({}) is None
    assert peer_certificate({"extensions": {"tls": {}}}) is None


def refused(port: int, context: ssl.SSLContext) -> bool:
    """Whether TLS lets nobody in; a client may learn it with its first read only."""
    try:
        httpx.get(f"https://127.0.0.1:{port}/", verify=context)
    except httpx.TransportError:
        return True
    return False


def test_a_certificate_of_another_ca_is_refused(
    authority: Authority, tls: TlsFiles, tmp_path: Path
) -> None:
    stranger = FakeDevice.enrolled(Authority.make("test", today()), tmp_path)
    with Listener(APP, ANYWHERE, tls) as listener:
        assert refused(listener.port, stranger.tls(authority.certificate_pem))


def test_an_expired_certificate_is_refused(
    authority: Authority, tls: TlsFiles, tmp_path: Path
) -> None:
    device = FakeDevice.enrolled(authority, tmp_path)
    late = authority.issue_device(csr_of(device.key), today() - timedelta(days=2), 1)
    (device.directory / "cert.pem").write_text(late.certificate)
    with Listener(APP, ANYWHERE, tls) as listener:
        assert refused(listener.port, device.tls(authority.certificate_pem))


def test_a_server_certificate_is_no_client_certificate(authority: Authority, tls: TlsFiles) -> None:
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context.load_cert_chain(tls.certificate, tls.key)
    with Listener(APP, ANYWHERE, tls) as listener:
        assert refused(listener.port, context)


def test_a_device_notices_a_server_of_another_ca(tls: TlsFiles, tmp_path: Path) -> None:
    other = Authority.make("test", today())
    device = FakeDevice.enrolled(other, tmp_path)
    with Listener(APP, ANYWHERE, tls) as listener, pytest.raises(httpx.ConnectError, match="CERT"):
        httpx.get(f"https://127.0.0.1:{listener.port}/", verify=device.tls(other.certificate_pem))


def test_a_port_in_use_is_named_with_its_key(tls: TlsFiles) -> None:
    with Listener(APP, ANYWHERE, tls) as first:
        place = Place("127.0.0.1", first.port, "enrol_port")
        with (
            pytest.raises(StartError, match=f"port {first.port} .*enrol_port") as caught,
            Listener(APP, place, tls),
        ):
            pass
    assert "in use" in str(caught.value)
    assert "enrol_port" in caught.value.hint
    with Listener(APP, place, tls) as second:  # and free again at once
        assert second.port == first.port


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(StartError, match=r"port 9 on 192\.0\.2\.1 .device_port.*cannot be opened"):
        bind(Place("192.0.2.1", 9, "device_port"))


def test_tls_files_that_do_not_fit_are_named(tls: TlsFiles) -> None:
    with pytest.raises(StartError, match="TLS files cannot be used") as caught:
        Listener(APP, ANYWHERE, TlsFiles(tls.key, tls.key))
    assert str(tls.key) in caught.value.hint


def test_an_application_that_cannot_start_says_so(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with (
        pytest.raises(StartError, match="test_port did not start"),
        Listener(Starlette(lifespan=lifespan), ANYWHERE, None),
    ):
        pass
    assert "no database" in caplog.text


def test_a_listener_leaves_no_thread(tls: TlsFiles) -> None:
    before = threading.active_count()
    with Listener(APP, ANYWHERE, tls):
        assert threading.active_count() > before
    assert threading.active_count() == before

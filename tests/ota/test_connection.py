"""GET over one connection: what is kept, what ends, and in whose words it fails."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.certificates import self_signed

from wildflower.ota.release.connection import LEFT_OVER, Connection, Place, parsed
from wildflower.ota.release.http import LateError

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SOON_S = 0.3


class Peer:
    """Serves one connection after the other with the same bytes for each request.

    Attributes:
        url: Its base URL.
        asked: First line of every request.
        connections: How many there were.
    """

    def __init__(self, listener: socket.socket, scheme: str) -> None:
        self.url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.connections = 0


@contextmanager
def serving(
    answer: bytes, context: ssl.SSLContext | None = None, *, ends: bool = False
) -> Iterator[Peer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Peer(listener, "https" if context else "http")

        def talk(raw: socket.socket) -> None:
            with suppress(OSError), raw:
                connection = context.wrap_socket(raw, server_side=True) if context else raw
                with connection:
                    while request := connection.recv(65536):
                        peer.asked.append(request.split(b"\r\n")[0].decode())
                        connection.sendall(answer)
                        if ends:
                            return

        def serve() -> None:
            with suppress(OSError):
                while True:
                    raw, _ = listener.accept()
                    peer.connections += 1
                    talk(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield peer
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(line: Connection, url: str) -> bytes:
    with line.get(url, {"Accept-Encoding": "identity"}) as answer:
        return b"".join(answer.iter_raw())


def test_one_connection_serves_many_requests() -> None:
    with serving(WHOLE) as peer, Connection(None, timeout_s=5) as line:
        assert [ask(line, f"{peer.url}/{name}") for name in "abc"] == [b"ok"] * 3
    assert peer.asked == ["GET /a HTTP/1.1", "GET /b HTTP/1.1", "GET /c HTTP/1.1"]
    assert peer.connections == 1


def test_behind_tls_too(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trust = ssl.create_default_context(cafile=str(certificate))
    with serving(WHOLE, context) as peer, Connection(trust, timeout_s=5) as line:
        assert [ask(line, peer.url) for _ in range(3)] == [b"ok"] * 3
    assert peer.connections == 1
    with (
        serving(WHOLE, context) as peer,
        Connection(ssl.create_default_context(), timeout_s=5) as line,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        ask(line, peer.url)


def test_a_server_that_has_hung_up_costs_a_connection_and_no_request() -> None:
    with serving(WHOLE, ends=True) as peer, Connection(None, timeout_s=5) as line:
        assert ask(line, peer.url) == b"ok"
        connection = line._connection
        assert connection is not None
        assert connection.sock is not None
        assert connection.sock.recv(1, socket.MSG_PEEK) == b""  # its goodbye has come
        assert ask(line, peer.url) == b"ok"
    assert peer.connections == 2


def test_another_server_gets_a_connection_of_its_own() -> None:
    with serving(WHOLE) as one, serving(WHOLE) as other, Connection(None, timeout_s=5) as line:
        assert [ask(line, peer.url) for peer in (one, other, one)] == [b"ok"] * 3
    assert (one.connections, other.connections) == (2, 1)


@pytest.mark.parametrize(("length", "connections"), [(LEFT_OVER, 1), (LEFT_OVER + 1, 2)])
def test_little_that_nobody_read_is_read_and_much_ends_the_connection(
    length: int, connections: int
) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % length + bytes(length)
    with serving(answer) as peer, Connection(None, timeout_s=5) as line:
        for _ in range(2):
            with pytest.raises(LookupError), line.get(peer.url, {}) as found:
                raise LookupError(found.status_code)
    assert peer.connections == connections


def test_what_is_left_over_and_does_not_come_is_not_waited_for() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\nsome"
    with serving(answer) as peer, Connection(None, timeout_s=60) as line:
        began = time.monotonic()
        for _ in range(2):
            with line.get(peer.url, {}) as found:
                assert found.status_code == 404
        assert time.monotonic() - began < 30
    assert peer.connections == 2


def test_bodies_end_with_their_frame_or_their_connection() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n"
    with serving(chunked) as peer, Connection(None, timeout_s=5) as line:
        assert [ask(line, peer.url) for _ in range(2)] == [b"ok!"] * 2
    assert peer.connections == 1
    unframed = b"HTTP/1.1 200 OK\r\n\r\nok"
    with serving(unframed, ends=True) as peer, Connection(None, timeout_s=5) as line:
        assert [ask(line, peer.url) for _ in range(2)] == [b"ok"] * 2
    assert peer.connections == 2


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", httpx.RemoteProtocolError, "7 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            httpx.RemoteProtocolError,
            "Incomplete",
        ),
        (b"no HTTP\r\n\r\n", httpx.RemoteProtocolError, "BadStatusLine"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
            httpx.RemoteProtocolError,
            "headers",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, httpx.RemoteProtocolError, "header line"),
        (b"", httpx.RemoteProtocolError, "RemoteDisconnected"),
    ],
)
def test_what_is_no_answer_is_an_error_in_httpx_s_words(
    answer: bytes, kind: type[Exception], told: str
) -> None:
    with (
        serving(answer, ends=True) as peer,
        Connection(None, timeout_s=5) as line,
        pytest.raises(kind, match=told),
    ):
        ask(line, peer.url)


def test_no_time_at_all_is_too_little() -> None:
    with (
        serving(WHOLE) as peer,
        Connection(None, timeout_s=5, headers_s=0) as line,
        pytest.raises(LateError),
    ):
        ask(line, peer.url)


def test_a_body_that_stalls_ends_by_the_wait_s_own_bound() -> None:
    stalled = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"
    with (
        serving(stalled) as peer,
        Connection(None, timeout_s=SOON_S) as line,
        pytest.raises(httpx.ReadTimeout),
    ):
        ask(line, peer.url)


def test_nobody_there_is_an_error_of_connecting() -> None:
    with Connection(None, timeout_s=5) as line, pytest.raises(httpx.ConnectError):
        ask(line, "http://127.0.0.1:1/x")


def test_a_server_that_does_not_shake_hands_is_an_error_of_connecting() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Connection(ssl.create_default_context(), timeout_s=SOON_S) as line,
        pytest.raises(httpx.ConnectTimeout),
    ):
        ask(line, f"https://127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize(
    ("url", "place", "target"),
    [
        ("http://h", Place(False, "h", 80), "/"),
        ("https://h/a%20b", Place(True, "h", 443), "/a%20b"),
        ("http://[::1]:8/a b?c=d e", Place(False, "::1", 8), "/a%20b?c=d%20e"),
        ("http://h/a\r\nX: y", Place(False, "h", 80), "/aX:%20y"),
    ],
)
def test_addresses_are_taken_apart(url: str, place: Place, target: str) -> None:
    assert parsed(url) == (place, target)


@pytest.mark.parametrize(
    "url", ["http://h:x/", "http://", "http://[1/", "http://a b/", "http://a..b/", "ftp://h"]
)
def test_what_is_no_address_is_said_so(url: str) -> None:
    with (
        pytest.raises((httpx.InvalidURL, httpx.UnsupportedProtocol)),
        Connection(None, timeout_s=1) as line,
    ):
        ask(line, url)


@given(url=st.text(max_size=50) | st.text(max_size=40).map("http://{}".format))
@example("http://\x00/")
def test_any_address_is_one_or_is_refused(url: str) -> None:
    try:
        place, target = parsed(url)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        return
    assert place.host
    assert 0 <= place.port < 1 << 16
    assert target.startswith("/")
    assert target.isascii()
    assert target.isprintable()
    assert " " not in target


@given(answer=st.binary(max_size=200) | st.binary(max_size=80).map(WHOLE.__add__))
def test_any_bytes_are_an_answer_or_an_error(answer: bytes) -> None:
    with (
        serving(answer, ends=True) as peer,
        Connection(None, timeout_s=5) as line,
        suppress(httpx.HTTPError),
    ):
        assert len(ask(line, peer.url)) <= len(answer)

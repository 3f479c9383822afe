"""Answers whose beginning does not come."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.certificates import self_signed

from wildflower.ota.release.connection import Connection
from wildflower.ota.release.http import LateError

SOON_S = 0.3
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[socket.socket, int], None]


@contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve one connection; `answer` is given it with the number of each request, from 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            connection = context.wrap_socket(raw, server_side=True) if context else raw
            number = 0
            with suppress(OSError), connection:
                while connection.recv(65536):
                    answer(connection, number)
                    number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def drip(connection: socket.socket, _: int) -> None:
    """Send a header that never ends, until the other side has had enough."""
    pause = threading.Event()
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x")
        pause.wait(0.01)


def drip_from_the_second_on(connection: socket.socket, number: int) -> None:
    if number == 0:
        connection.sendall(WHOLE)
    else:
        drip(connection, number)


def never(connection: socket.socket, _: int) -> None:
    """Say nothing until the other side has had enough."""
    connection.recv(1)


def ask(line: Connection, url: str) -> bytes:
    with line.get(url, {}) as answer:
        return b"".join(answer.iter_raw())


@pytest.mark.parametrize("answer", [drip, never])
def test_headers_that_do_not_come_end_the_request(answer: Answer) -> None:
    with (
        serving(answer) as url,
        Connection(None, timeout_s=60, headers_s=SOON_S) as line,
        pytest.raises(LateError, match=r"no headers within 0\.3 s"),
    ):
        ask(line, url)


def test_behind_tls_too(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trust = ssl.create_default_context(cafile=str(certificate))
    with (
        serving(drip, context) as url,
        Connection(trust, timeout_s=60, headers_s=SOON_S) as line,
        pytest.raises(LateError, match="no headers within"),
    ):
        ask(line, url)


def test_on_a_connection_that_is_used_again_too() -> None:
    with (
        serving(drip_from_the_second_on) as url,
        Connection(None, timeout_s=60, headers_s=SOON_S) as line,
    ):
        assert ask(line, url) == b"ok"
        with pytest.raises(LateError, match="no headers within"):
            ask(line, url)

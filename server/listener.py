"""A TLS listener in a thread of its own: uvicorn, started and stopped like a file.

    with Listener(app, place, identity):   # bound, accepting
        ...                                # closed, thread joined

The socket is bound before the thread starts, so that a port in use is an error here, with its
name, and not a line in a log.
"""

import errno
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import uvicorn

from wildflower.server.errors import StartError
from wildflower.server.tls_compat import PeerCertificateProtocol

GRACE_S: Final = 2  # what a request under way gets when the server stops
BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen.

    Attributes:
        host: Address to bind.
        port: Port to bind.
        key: Its key in the settings, for errors.
        settings: Where the key is set, for errors.
    """

    host: str
    port: int
    key: str
    settings: str = "in server.toml"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Who the server is, and whose clients it asks for a certificate.

    Attributes:
        key: Private key, PEM.
        certificate: Certificate, PEM.
        client_ca: CA whose certificates clients may show; None asks for none.
    """

    key: Path
    certificate: Path
    client_ca: Path | None = None


def bind(place: Place) -> socket.socket:
    """Bind a listening socket.

    Raises:
        StartError: The port is in use, not ours to take, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((place.host, place.port))
        bound.listen(BACKLOG)  # only now does Linux notice two sockets bound to one address
    except OSError as error:
        bound.close()
        raise cannot_listen(place, error) from error
    return bound


def cannot_listen(place: Place, error: OSError | RuntimeError) -> StartError:
    """Return the error that says why a listener cannot start."""
    where = f"port {place.port} on {place.host} ({place.key} {place.settings})"
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        return StartError(
            f"{where} is in use",
            hint=f"Stop what uses it, or choose another {place.key}.",
        )
    return StartError(f"{where} cannot be opened: {error}", hint=f"Check host and {place.key}.")


class Listener:
    """Serves an ASGI application until the block ends; without `tls`, plain HTTP.

    Attributes:
        port: The port it listens on, the real one where 0 was asked for.
    """

    def __init__(
        self, application: Any, place: Place, tls: TlsFiles | None, *, concurrency: int = 5000
    ) -> None:
        self.port = place.port
        self._server = _Announcing(_config(application, tls, concurrency))
        self._thread = threading.Thread(target=self._run, name=place.key, daemon=True)
        self._place = place

    def __enter__(self) -> Self:
        self._socket = bind(self._place)
        self.port = self._socket.getsockname()[1]
        self._thread.start()
        self._server.announced.wait()
        if not self._server.started:
            self._close()
            raise StartError(f"the listener of {self._place.key} did not start; its log says why")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.announced.set()

    def _close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class _Announcing(uvicorn.Server):
    """A server that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.announced = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.announced.set()


def _config(application: Any, tls: TlsFiles | None, concurrency: int) -> uvicorn.Config:
    secured: dict[str, Any] = {}
    if tls is not None:
        secured = {"ssl_keyfile": str(tls.key), "ssl_certfile": str(tls.certificate)}
        if tls.client_ca is not None:
            secured |= {"ssl_ca_certs": str(tls.client_ca), "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    config = uvicorn.Config(
        application,
        http=PeerCertificateProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=concurrency,
        **secured,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise StartError(
            f"the TLS files cannot be used: {error}", hint=f"Check {tls.key if tls else ''}."
        ) from error
    return config

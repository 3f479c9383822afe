"""The committed model for programs that are not in Python: HTTP over a Unix socket.

    POST   /v1/infer         a .npy body or {"inputs": [[...]], "labels": [...]} -> the answer
    GET    /v1/model         what answers: digests, labels, what was refused, who holds
    POST   /v1/hold          {"reason": "...", "max_s": 60} -> {"id": "..."}: no switch meanwhile
    DELETE /v1/hold?id=...   ends it; it also ends by itself, and with this process
    GET    /healthz          200 while there is a model that answers

Who may ask is what the socket's directory and mode say: there is no other authentication, and no
TCP. `Accept: application/x-npy` has an answer's outputs alone, as they are. A request has limits in
size, time and number; one that breaks them is refused with a sentence, and harms no other.

Answers follow releases as `ModelSlot.session` does: without a pause.
"""

import contextlib
import json
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from wildflower.client.errors import AgentError, ClientError, RequestError
from wildflower.client.hold import LONGEST_S, Held, Holds
from wildflower.client.inference import Answer, ModelSlot, Session
from wildflower.client.limited import LimitedThreads
from wildflower.client.tensors import MAX_BODY, Question, from_json, from_npy, read_object, to_npy
from wildflower.ota.errors import ModelError, OtaError, RefusedError

log = logging.getLogger(__name__)

MODE: Final = 0o660
"""Of the socket: its user and group may ask."""
SILENCE_S: Final = 10.0
"""Seconds without a byte after which a connection is closed."""
MAX_CONNECTIONS: Final = 32
NPY: Final = "application/x-npy"
JSON: Final = "application/json"


class Served:
    """One device's model and holds, as the handlers of all connections share them."""

    def __init__(self, slot: ModelSlot, holds: Holds) -> None:
        self._slot = slot
        self._holds = holds
        self._session: Session | None = None
        self._mine: dict[str, Held] = {}
        self._lock = threading.Lock()

    def session(self) -> Session:
        """Return the session; it is made when there is a model for the first time.

        Raises:
            RefusedError: No slot holds what its manifest says.
        """
        with self._lock:
            if self._session is None:
                self._session = self._slot.session()
            return self._session

    def infer(self, question: Question) -> Answer:
        """Return the model's answer.

        Raises:
            RefusedError: There is no model.
            ModelError: It cannot answer these inputs.
        """
        return self.session().infer(question.inputs, question.labels)

    def model(self) -> dict[str, Any]:
        """Return what answers.

        Raises:
            RefusedError: There is no model.
        """
        self.session()
        found = self._slot.loaded
        return {
            "release": found.release,
            "artifact": found.artifact,
            "labels": list(found.baseline.labels),
            "refusal": self._slot.refusal,
            "holds": [str(hold) for hold in self._holds.standing()],
        }

    def hold(self, reason: str, max_s: float) -> str:
        """Begin a hold and return its id.

        Raises:
            HoldError: Too many hold, or the directory cannot be written.
            RequestError: The reason or the seconds are out of range.
        """
        try:
            held = self._holds.take(reason, max_s=max_s, holder="a program at the socket")
        except ValueError as error:
            raise RequestError(str(error)) from error
        with self._lock:
            for name in [name for name, one in self._mine.items() if not one.left_s]:
                self._mine.pop(name).release()
            self._mine[held.name] = held
        return held.name

    def release(self, name: str) -> bool:
        """End a hold; return whether it stood."""
        with self._lock:
            held = self._mine.pop(name, None)
        if held is None:
            return False
        stood = held.left_s > 0
        held.release()
        return stood

    def close(self) -> None:
        """End every hold that was begun here."""
        with self._lock:
            for held in self._mine.values():
                held.release()
            self._mine.clear()


class Handler(BaseHTTPRequestHandler):
    """One connection; its requests come one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "wildflower"
    sys_version = ""
    timeout = SILENCE_S
    served: ClassVar[Served]

    def do_GET(self) -> None:
        """Answer a question about the model."""
        self._answer({"/v1/model": self._model, "/healthz": self._health})

    def do_POST(self) -> None:
        """Infer, or begin a hold."""
        self._answer({"/v1/infer": self._infer, "/v1/hold": self._hold})

    def do_DELETE(self) -> None:
        """End a hold."""
        self._answer({"/v1/hold": self._release})

    def _answer(self, paths: dict[str, Callable[[], None]]) -> None:
        path = urlsplit(self.path).path
        act = paths.get(path)
        if act is None:
            known = path in ("/v1/infer", "/v1/model", "/v1/hold", "/healthz")
            self.close_connection = True  # a body may follow that nobody reads
            self._fail(405 if known else 404, RequestError(f"no {self.command} {path[:80]}"))
            return
        try:
            act()
        except RefusedError as error:
            self._fail(503, error)
        except (ClientError, ModelError) as error:
            self._fail(400, error)

    def _infer(self) -> None:
        body = self._body()
        kind = self.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, NPY):
            self._fail(415, RequestError(f"found {kind[:80]!r}, expected {JSON} or {NPY}"))
            return
        answer = self.served.infer(from_npy(body) if kind == NPY else from_json(body))
        if self.headers.get("Accept", "").strip().lower() == NPY:
            self._send(200, to_npy(answer.outputs), NPY, release=answer.release)
            return
        told = {
            "predicted": answer.predicted.tolist(),
            "confidence": answer.confidence.tolist(),
            "outputs": answer.outputs.tolist(),
            "labels": list(answer.labels),
            "artifact": answer.artifact,
            "release": answer.release,
        }
        self._say(200, told)

    def _model(self) -> None:
        self._say(200, self.served.model())

    def _health(self) -> None:
        self.served.session()
        self._say(200, {"ready": True})

    def _hold(self) -> None:
        asked = read_object(self._body(), allowed=("reason", "max_s"))
        match asked:
            case {"reason": str(reason), "max_s": int() | float() as max_s} if (
                type(max_s) is not bool and 0 < max_s <= LONGEST_S
            ):
                self._say(201, {"id": self.served.hold(reason, float(max_s)), "max_s": max_s})
            case _:
                told = f'{{"reason": "...", "max_s": seconds up to {LONGEST_S:g}}}'
                raise RequestError(f"expected {told}")

    def _release(self) -> None:
        names = parse_qs(urlsplit(self.path).query, max_num_fields=4).get("id", [""])
        if not self.served.release(names[0]):
            self._fail(404, RequestError("no such hold; it may have ended by itself"))
            return
        self._say(200, {"released": names[0]})

    def _body(self) -> bytes:
        """Read the request's body.

        Raises:
            RequestError: It has no length, is too long, or ended early.
        """
        text = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not text.isdecimal() or len(text) > 12:
            self.close_connection = True
            raise RequestError("send a Content-Length, and no Transfer-Encoding")
        if int(text) > MAX_BODY:
            self.close_connection = True
            raise RequestError(f"found {int(text)} bytes, at most {MAX_BODY} are read")
        body = self.rfile.read(int(text))
        if len(body) != int(text):
            self.close_connection = True
            raise RequestError(f"the body ended after {len(body)} of {text} bytes")
        return body

    def _fail(self, status: int, error: ClientError | OtaError) -> None:
        told = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
        self._say(status, {"error": told})

    def _say(self, status: int, document: dict[str, Any]) -> None:
        self._send(status, json.dumps(document).encode(), JSON)

    def _send(self, status: int, body: bytes, kind: str, *, release: str = "") -> None:
        with contextlib.suppress(OSError):  # the other side went away
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if release:
                self.send_header("X-Wildflower-Release", release)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def address_string(self) -> str:
        """Return who asks: a Unix socket has no address."""
        return "socket"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Say little: a request a line is for debugging alone."""
        log.debug(format, *args)


class Server(LimitedThreads, socketserver.UnixStreamServer):
    """Listens at a socket that the device's own users may open."""

    request_queue_size = 64

    def __init__(self, path: Path, handler: type[Handler]) -> None:
        super().__init__(str(path), handler, connections=MAX_CONNECTIONS)
        path.chmod(MODE)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what a connection broke; it breaks nothing else."""
        log.warning("a connection at the socket broke", exc_info=sys.exception())


@contextmanager
def serving(directory: Path, path: Path) -> Iterator[Server]:
    """Listen at a socket for the length of the block; `serve_forever` answers.

    Args:
        directory: The device's directory.
        path: Where the socket shall be; one that nobody listens at is replaced.

    Raises:
        AgentError: Somebody listens there already, or it cannot be made.
    """
    _clear(path)
    with ModelSlot(directory) as slot:
        served = Served(slot, Holds(directory))
        handler = type("DeviceHandler", (Handler,), {"served": served})
        try:
            server = Server(path, handler)
        except OSError as error:
            raise AgentError(
                f"no socket at {path}: {error}", hint="A path has at most 107 bytes."
            ) from error
        try:
            yield server
        finally:
            server.server_close()
            path.unlink(missing_ok=True)
            served.close()


def _clear(path: Path) -> None:
    """Remove a socket that a killed process left.

    Raises:
        AgentError: Somebody listens at it, or it is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise AgentError(f"{path} is there and no socket", hint="Choose another path.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise AgentError(
        f"somebody listens at {path} already", hint="Ask there, or choose another path."
    )

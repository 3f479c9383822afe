"""A tiny server for real agents: TLS enrolment and files, the gRPC channel, a TUF repository.

Everything that protects a device is real (TLS, certificates, signatures, TUF metadata); what the
server would store is a list.
"""

import base64
import contextlib
import json
import queue
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import grpc
from tests.device_fakes import Bundle, document

from wildflower.client.channel import CheckIn, Hint
from wildflower.client.enrolment import Enrolment, enrol
from wildflower.client.errors import ChannelError
from wildflower.client.policy import Policy
from wildflower.ota import canonical
from wildflower.ota.device.report import DeviceReport
from wildflower.ota.release import signing
from wildflower.ota.release.keys import ROLLOUT, RoleKeys, generate_roles
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.repository import Changes, Repository
from wildflower.ota.release.statement import statement_path
from wildflower.ota.rollout.document import RolloutDocument, document_path
from wildflower.ota.wire import device_pb2 as wire
from wildflower.server.ca import Authority

SECRET = "s" * 43
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
"""Real daemons read the real clock: what they install must have begun whenever the test runs."""


def today() -> datetime:
    return datetime.now(UTC)


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition that another thread or process brings about."""
    deadline = today() + timedelta(seconds=seconds)
    pause = threading.Event()
    while not holds():
        assert today() < deadline, "it did not come about"
        pause.wait(0.01)


@dataclass
class Faults:
    """What the file server does wrong.

    Attributes:
        flipped: Blob digests whose middle byte is served flipped.
        cut: Blob digests served only in part, with the bytes that are served each time.
        down: Whether every request is answered with 503.
    """

    flipped: set[str]
    cut: dict[str, int]
    down: bool = False


class Releases:
    """A TUF repository and its blobs on disk, with keys of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        keys = directory / "keys"
        keys.mkdir(parents=True)
        self.keys: Mapping[str, RoleKeys] = generate_roles(keys, keys / "auto.pem")
        self.repository = Repository(directory / "tuf")
        self.root = self.repository.create(self.keys, today())
        self.blobs: dict[str, bytes] = {}

    def publish(self, one: Bundle, *, role: str = "auto", statement: bytes = b"") -> None:
        """Sign a release and put its files, and its statement if there is one, beside it."""
        name = f"models/{role}"
        path = target_path(role, one.release.target_group, one.release.order)
        data = one.release.to_bytes()
        metadata = signing.add_release(
            self.repository.current(name),
            path,
            data,
            self.keys[name].signers,
            expires=self._soon(),
            provenance=statement,
        )
        beside = {statement_path(path): statement} if statement else {}
        self._write(name, metadata, {path: data, **beside})
        self.blobs |= one.blobs

    def roll_out(self, one: Bundle, **changes: Any) -> None:
        """Publish a rollout document that offers a release to everybody."""
        self.put(document(one.release, **({"not_before": LONG_AGO} | changes)))

    def put(self, found: RolloutDocument) -> None:
        path, data = document_path(found.target_group), found.to_bytes()
        metadata = signing.put_target(
            self.repository.current(ROLLOUT),
            path,
            data,
            self.keys[ROLLOUT].signers,
            expires=self._soon(),
        )
        self._write(ROLLOUT, metadata, {path: data})

    def _write(self, role: str, metadata: bytes, targets: Mapping[str, bytes]) -> None:
        self.repository.publish(Changes({role: metadata}, targets), self.keys, today())

    def _soon(self) -> datetime:
        return today() + timedelta(days=1)


class FakeServer:
    """The server on free loopback ports, as a context manager.

    Attributes:
        authority: Its enrolment CA.
        releases: What it publishes.
        faults: What it does wrong.
        refuse: The error it answers enrolments with; "" to enrol.
        enrolled: Bodies of the requests to enrol that came in.
        asked: Paths that were asked for.
        served: Bytes of files of releases that were sent, by their digest.
        reports: Reports that came in, as they were signed.
        summaries: (sequence, payload) that came in.
        check_ins: Self-reports that came in.
        training: Id of the training it invites to.
    """

    def __init__(self, directory: Path, *, authority: Authority | None = None) -> None:
        self.authority = authority or Authority.make("test", today())
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.releases = Releases(directory / "releases")
        self.faults = Faults(set(), {})
        self.answer: dict[str, Any] = {}
        self.refuse = ""
        self.enrolled: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.served = Counter[str]()
        self.reports: list[DeviceReport] = []
        self.signatures: list[bytes] = []
        self.summaries: list[tuple[int, bytes]] = []
        self.check_ins: list[bytes] = []
        self.training = ""
        self.channel_port = 0
        self._watching: list[queue.Queue[wire.Hint | None]] = []
        key, certificate = self.authority.issue_server([], today())
        self._files = (directory / "server.key", directory / "server.pem")
        for path, data in zip(self._files, (key, certificate), strict=True):
            path.write_bytes(data)

    def __enter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files[1], self._files[0])
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.socket = context.wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        self.start_channel()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_channel()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._http.server_address[1]}"

    def token(self, **changes: str) -> str:
        """Return a join token; `changes` make it wrong."""
        body = {
            "url": self.url,
            "secret": SECRET,
            "ca": self.authority.digest,
            "root": canonical.digest(self.releases.root),
        }
        text = base64.urlsafe_b64encode(json.dumps(body | changes).encode()).decode()
        return "wf1." + text.rstrip("=")

    def enrol(self, directory: Path, **changes: Any) -> Path:
        """Enrol a real device and return its directory."""
        wanted = Enrolment(
            directory=directory,
            name=directory.name,
            device_class="linux-generic",
            policy=Policy(release=("auto", "approved")),
            poll_s=0.2,
            upload_s=0.2,
        )
        enrol(self.token(), replace(wanted, **changes))
        return directory

    def start_channel(self) -> None:
        """Listen for the device channel, on the port that it had."""
        self._pool = ThreadPoolExecutor(8)
        self._grpc = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        self._grpc.add_generic_rpc_handlers((_methods(self),))
        key, certificate = (path.read_bytes() for path in self._files)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], self.authority.certificate_pem, require_client_auth=True
        )
        address = f"127.0.0.1:{self.channel_port}"
        self.channel_port = self._grpc.add_secure_port(address, credentials)
        self._grpc.start()

    def stop_channel(self) -> None:
        """End every stream and stop listening, as a server that is killed does."""
        for watching in self._watching:
            watching.put(None)
        self._grpc.stop(0.2).wait()
        self._pool.shutdown()

    def hint(self, kind: "wire.Hint.Kind") -> None:
        """Whisper to everybody who watches."""
        for watching in self._watching:
            watching.put(wire.Hint(kind=kind))

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._watching)

    def watch(self, context: grpc.ServicerContext) -> Iterator[wire.Hint]:
        waiting: queue.Queue[wire.Hint | None] = queue.Queue()
        self._watching.append(waiting)
        context.add_callback(lambda: waiting.put(None))
        yield wire.Hint(kind=wire.Hint.KIND_RELEASE)
        while (hint := waiting.get()) is not None:
            yield hint
        self._watching.remove(waiting)


def _methods(server: FakeServer) -> grpc.GenericRpcHandler:
    def report(request: wire.SignedDocument, _: Any) -> wire.ReportReply:
        found = DeviceReport.from_bytes(request.document)
        if found.sequence not in [one.sequence for one in server.reports]:
            server.reports.append(found)
            server.signatures.append(request.signature)
        return wire.ReportReply(sequence=found.sequence)

    def upload(request: wire.SummaryBatch, _: Any) -> wire.SummaryAck:
        server.summaries += [(one.sequence, one.payload) for one in request.summaries]
        last = max((one.sequence for one in request.summaries), default=0)
        return wire.SummaryAck(stream=request.stream, through=last)

    def check_in(request: wire.CheckInRequest, _: Any) -> wire.CheckInReply:
        server.check_ins.append(request.self_report)
        return wire.CheckInReply(training=server.training, next_s=1)

    def unary(act: Callable[[Any, Any], Any], kind: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            act,
            request_deserializer=kind.FromString,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    return grpc.method_handlers_generic_handler(
        "wildflower.device.v1.Device",
        {
            "Watch": grpc.unary_stream_rpc_method_handler(
                lambda _, context: server.watch(context),
                request_deserializer=wire.WatchRequest.FromString,
                response_serializer=wire.Hint.SerializeToString,
            ),
            "Report": unary(report, wire.SignedDocument),
            "UploadSummaries": unary(upload, wire.SummaryBatch),
            "CheckIn": unary(check_in, wire.CheckInRequest),
        },
    )


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            server.asked.append(self.path)
            if server.faults.down:
                self._answer(503, b"")
            elif self.path == "/v1/ca":
                self._answer(200, server.authority.certificate_pem)
            elif self.path.startswith("/blobs/"):
                self._blob(self.path.removeprefix("/blobs/"))
            else:
                self._file(server.releases.directory / self.path.lstrip("/").replace("%2F", "/"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.enrolled.append(body)
            if server.refuse:
                error = {"type": "EnrolmentError", "message": server.refuse, "hint": "Ask again."}
                self._answer(403, json.dumps({"error": error}).encode())
                return
            issued = server.authority.issue_device(body["csr"].encode(), today(), 30)
            answer: dict[str, Any] = {
                "device_id": issued.device_id,
                "certificate": issued.certificate,
                "device_class": "linux-generic",
                "root": base64.b64encode(server.releases.root).decode(),
                "endpoints": {
                    "device": server.url,
                    "channel": f"127.0.0.1:{server.channel_port}",
                },
                "ring": "default",
            }
            self._answer(200, json.dumps(answer | server.answer).encode())

        def _blob(self, digest: str) -> None:
            data = server.releases.blobs.get(digest)
            if data is None:
                self._answer(404, b"")
                return
            if digest in server.faults.flipped:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            part, served = data[start:], server.faults.cut.get(digest, len(data))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(part)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(part[:served])
            server.served[digest] += len(part[:served])
            self.close_connection = self.close_connection or served < len(part)

        def _file(self, path: Path) -> None:
            if path.is_file():
                self._answer(200, path.read_bytes())
            else:
                self._answer(404, b"")

        def _answer(self, status: int, body: bytes) -> None:
            with contextlib.suppress(OSError):  # the other side went away
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: http.server would print every request."""

    return Request


class MemoryChannel:
    """A `client.channel.Channel` without a network; what the server would store is a list.

    Attributes:
        is_down: Whether the server is away.
        training: Id of the training it invites to.
    """

    def __init__(self) -> None:
        self.is_down = False
        self.training = ""
        self.reports: list[DeviceReport] = []
        self.signatures: list[bytes] = []
        self.summaries: list[tuple[int, bytes]] = []
        self.check_ins: list[bytes] = []
        self.takes = 1000
        self._closed = False
        self._hints: queue.Queue[Hint | None] = queue.Queue()

    def watch(self) -> Iterator[Hint]:
        self._require()
        while (hint := self._hints.get()) is not None:
            yield hint
        if not self._closed:
            raise ChannelError("unavailable: the server went away")

    def report(self, document: bytes, signature: bytes) -> int:
        self._require()
        found = DeviceReport.from_bytes(document)
        if found.sequence not in [one.sequence for one in self.reports]:
            self.reports.append(found)
            self.signatures.append(signature)
        return found.sequence

    def upload(self, stream: bytes, summaries: Sequence[tuple[int, bytes]]) -> int:
        self._require()
        taken = [one for one in summaries if one[0] <= self.takes]
        self.summaries += taken
        return max((number for number, _ in taken), default=0)

    def check_in(self, self_report: bytes) -> CheckIn:
        self._require()
        self.check_ins.append(self_report)
        return CheckIn(self.training, 1)

    def close(self) -> None:
        self._closed = True
        self._hints.put(None)

    def hint(self, hint: Hint) -> None:
        self._hints.put(hint)

    def go_away(self) -> None:
        self.is_down = True
        self._hints.put(None)

    def come_back(self) -> None:
        self.is_down = False

    def _require(self) -> None:
        if self.is_down or self._closed:
            raise ChannelError("unavailable")

"""The device channel (:8444): gRPC with mutual TLS around `server.reception`.

    Watch            held open; hints from `server.presence`, and heartbeats
    Report           a signed outcome
    UploadSummaries  monitoring summaries, with acknowledgement
    CheckIn          for devices that are rarely online

A device that is unknown or revoked is told PERMISSION_DENIED at every call. The server runs in an
event loop in a thread of its own: a thousand open streams cost no thread. What blocks (the
database) runs in a small pool, connects and disconnects in one thread, in their order. A peer that
closes its socket is noticed at once, one that falls silent by HTTP/2 pings, within three seconds.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.wire import device_pb2 as wire
from wildflower.server.errors import ServerError, StartError
from wildflower.server.listener import Place, TlsFiles, cannot_listen
from wildflower.server.presence import Hint, HintKind, Presence
from wildflower.server.reception import Reception
from wildflower.server.records import Device

log = logging.getLogger(__name__)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

SERVICE: Final = "wildflower.device.v1.Device"
THREADS: Final = 8  # that wait for the database at a time
GRACE_S: Final = 1.0  # what a call under way gets when the server stops
KINDS: Final = {
    HintKind.TRAINING: wire.Hint.KIND_TRAINING,
    HintKind.RELEASE: wire.Hint.KIND_RELEASE,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often an open stream shows that it is alive.

    Attributes:
        ping_s: Period of the HTTP/2 pings.
        silence_s: A peer that has not answered a ping for so long is lost. A device that is busy
            training answers late at times, and must not be given up for that.
        heartbeat_s: Period of the heartbeats, which devices see.
    """

    ping_s: float = 1.0
    silence_s: float = 2.0
    heartbeat_s: float = 20.0


class ChannelServer:
    """Serves the device channel on a port until the block ends.

    Attributes:
        port: The port it listens on, the real one where 0 was asked for.

    Args:
        reception: Answers the calls.
        presence: Learns who is connected.
        place: Where to listen.
        tls: Who the server is; `client_ca` is required.
        pace: How often an open stream shows that it is alive.
    """

    def __init__(
        self,
        reception: Reception,
        presence: Presence,
        place: Place,
        tls: TlsFiles,
        *,
        pace: Pace | None = None,
    ) -> None:
        if tls.client_ca is None:
            raise ValueError("the channel needs a CA for its clients")
        self.port = place.port
        self._reception = reception
        self._presence = presence
        self._place = place
        self._pace = pace or Pace()
        self._credentials = grpc.ssl_server_credentials(
            [(_read(tls.key), _read(tls.certificate))],
            root_certificates=_read(tls.client_ca),
            require_client_auth=True,
        )
        self._calls = ThreadPoolExecutor(THREADS, "channel")
        self._arrivals = ThreadPoolExecutor(1, "arrivals")

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        name = self._place.key
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        try:
            self._server = self._await(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._presence.close()
        self._await(self._server.stop(GRACE_S))
        self._end()

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_options(self._pace))
        server.add_generic_rpc_handlers((self._handlers(),))
        host = f"[{self._place.host}]" if ":" in self._place.host else self._place.host
        try:
            self.port = server.add_secure_port(f"{host}:{self._place.port}", self._credentials)
        except RuntimeError as error:
            raise cannot_listen(self._place, error) from error
        await server.start()
        return server

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._calls.shutdown()
        self._arrivals.shutdown()

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch,
                    request_deserializer=wire.WatchRequest.FromString,
                    response_serializer=wire.Hint.SerializeToString,
                ),
                "Report": self._call(self._report, wire.SignedDocument),
                "UploadSummaries": self._call(self._upload, wire.SummaryBatch),
                "CheckIn": self._call(self._check_in, wire.CheckInRequest),
            },
        )

    def _call(
        self, act: Callable[[Device, Any], Any], request_type: Any
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(request: Any, context: Context) -> Any:
            async with _told_to(context):
                device = await self._caller(context)
                return await self._in_pool(lambda: act(device, request))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_type.FromString,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    def _report(self, device: Device, request: wire.SignedDocument) -> wire.ReportReply:
        sequence = self._reception.report(device, request.document, request.signature)
        return wire.ReportReply(sequence=sequence)

    def _upload(self, device: Device, batch: wire.SummaryBatch) -> wire.SummaryAck:
        summaries = [(summary.sequence, summary.payload) for summary in batch.summaries]
        taken = self._reception.upload(device, batch.stream, summaries)
        return wire.SummaryAck(stream=batch.stream, through=taken.through, refused=taken.refused)

    def _check_in(self, device: Device, request: wire.CheckInRequest) -> wire.CheckInReply:
        told = self._reception.check_in(device, request.self_report)
        return wire.CheckInReply(
            training=told.training,
            next_s=told.next_s,
            server_time=canonical.to_time(told.now),
        )

    async def _watch(self, _: wire.WatchRequest, context: Context) -> AsyncIterator[wire.Hint]:
        async with _told_to(context):
            device = await self._caller(context)
        loop, wake = asyncio.get_running_loop(), asyncio.Event()
        watcher = self._presence.attach(device.device_id, lambda: _wake(loop, wake))
        self._arrivals.submit(self._came, device.device_id)
        try:
            async with _told_to(context):
                greeting = await self._in_pool(lambda: self._reception.greet(device))
            for hint in greeting:
                yield _to_wire(hint)
            while not watcher.ended:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), self._pace.heartbeat_s)
                wake.clear()
                hints: list[Hint | None] = [*self._presence.take(watcher)]
                for found in hints or [None]:
                    yield _to_wire(found)
        finally:
            if self._presence.detach(watcher):
                self._arrivals.submit(self._went, device.device_id)

    def _came(self, device_id: str) -> None:
        with _nobody_waits():
            self._reception.came(device_id, self._presence.epoch(device_id))

    def _went(self, device_id: str) -> None:
        with _nobody_waits():
            self._reception.went(device_id)

    async def _caller(self, context: Context) -> Device:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        return await self._in_pool(lambda: self._reception.identify(pem))

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, work)


@contextlib.asynccontextmanager
async def _told_to(context: Context) -> AsyncIterator[None]:
    """Tell the caller about errors in the words of gRPC."""
    try:
        yield
    except PermissionError as error:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
    except FormatError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except ServerError as error:
        log.warning("call failed: %s", error)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server cannot store this now")


@contextlib.contextmanager
def _nobody_waits() -> Any:
    """Log what goes wrong where there is nobody to tell."""
    try:
        yield
    except ServerError as error:
        log.warning("not remembered: %s", error)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _to_wire(hint: Hint | None) -> wire.Hint:
    """Return a hint's message; None is a heartbeat."""
    return wire.Hint() if hint is None else wire.Hint(kind=KINDS[hint.kind], training=hint.training)


def _options(pace: Pace) -> list[tuple[str, int]]:
    ping, silence = int(pace.ping_s * 1000), int(pace.silence_s * 1000)
    return [
        ("grpc.so_reuseport", 0),  # or a second server would share the port in silence
        ("grpc.keepalive_time_ms", ping),
        ("grpc.keepalive_timeout_ms", silence),
        ("grpc.http2.ping_timeout_ms", silence),  # a minute by default, and it decides
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", ping // 2),
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error}") from error

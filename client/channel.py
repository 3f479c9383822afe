"""The device channel: what an agent says to its server, behind one small Protocol.

Implementations: `GrpcChannel` over mutual TLS with the pinned CA, and an in-memory one for tests.
One contract suite (`tests/contracts/test_channel.py`) runs over both. gRPC is called by method
name: the messages are `ota.wire`, there are no generated stubs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Any, Final, Protocol

import grpc

from wildflower.client.errors import ChannelError
from wildflower.client.identity import Identity
from wildflower.ota.wire import device_pb2 as wire

SERVICE: Final = "/wildflower.device.v1.Device/"
CALL_S: Final = 30.0
"""Seconds after which a call without an answer has failed."""
OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_retries", 0),  # the agent decides when to try again
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@unique
class Hint(StrEnum):
    """What the server hints at; it only says when to look."""

    HEARTBEAT = "heartbeat"
    TRAINING = "training"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class CheckIn:
    """What the server says at a check-in: the training it invites to, and when to come back."""

    training: str
    next_s: int


class Channel(Protocol):
    """How an agent reaches its server. Every method raises `ChannelError` when it cannot now."""

    def watch(self) -> Iterator[Hint]:
        """Yield hints while the connection holds; end when it is closed, here or there."""
        ...

    def report(self, document: bytes, signature: bytes) -> int:
        """Deliver a signed report; return the sequence that the server has stored.

        Repeating it changes nothing.
        """
        ...

    def upload(self, stream: bytes, summaries: Sequence[tuple[int, bytes]]) -> int:
        """Deliver summaries; return the sequence up to which all are stored or refused."""
        ...

    def check_in(self, self_report: bytes) -> CheckIn:
        """Tell the server what this device is; return what it says."""
        ...

    def close(self) -> None:
        """End the connection, and `watch` with it."""
        ...


class GrpcChannel:
    """The channel over gRPC and mutual TLS. Safe to use from several threads."""

    def __init__(self, address: str, identity: Identity, *, agent: str) -> None:
        """Prepare the connection; it is made when it is first used.

        Args:
            address: `host:port` of the server's channel.
            identity: Who this device is.
            agent: Version of the agent.
        """
        credentials = grpc.ssl_channel_credentials(
            identity.ca_pem, identity.key_pem, identity.certificate_pem
        )
        self._agent = agent
        self._channel = grpc.secure_channel(address, credentials, options=OPTIONS)
        self._watching: Any = None

    def watch(self) -> Iterator[Hint]:
        """Yield hints while the connection holds; end when it is closed."""
        call = self._channel.unary_stream(
            f"{SERVICE}Watch",
            request_serializer=wire.WatchRequest.SerializeToString,
            response_deserializer=wire.Hint.FromString,
        )
        with _told():
            self._watching = call(wire.WatchRequest(agent=self._agent))
            while (hint := self._next()) is not None:
                yield hint

    def report(self, document: bytes, signature: bytes) -> int:
        """Deliver a signed report; return the sequence that the server has stored."""
        reply = self._call(
            "Report", wire.SignedDocument(document=document, signature=signature), wire.ReportReply
        )
        return int(reply.sequence)

    def upload(self, stream: bytes, summaries: Sequence[tuple[int, bytes]]) -> int:
        """Deliver summaries; return the sequence up to which all are stored or refused."""
        batch = wire.SummaryBatch(
            stream=stream,
            summaries=[wire.Summary(sequence=number, payload=data) for number, data in summaries],
        )
        return int(self._call("UploadSummaries", batch, wire.SummaryAck).through)

    def check_in(self, self_report: bytes) -> CheckIn:
        """Tell the server what this device is; return what it says."""
        reply = self._call(
            "CheckIn", wire.CheckInRequest(self_report=self_report), wire.CheckInReply
        )
        return CheckIn(str(reply.training), int(reply.next_s))

    def close(self) -> None:
        """End the connection, and `watch` with it."""
        if self._watching is not None:
            self._watching.cancel()
        self._channel.close()

    def _next(self) -> Hint | None:
        try:
            return _HINTS.get(next(self._watching).kind, Hint.HEARTBEAT)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED:  # by `close`
                return None
            raise

    def _call(self, method: str, request: Any, reply: Any) -> Any:
        call: Callable[..., Any] = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        with _told():
            return call(request, timeout=CALL_S)


_HINTS: Final = {
    wire.Hint.KIND_TRAINING: Hint.TRAINING,
    wire.Hint.KIND_RELEASE: Hint.RELEASE,
}


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what gRPC raises into our error, in words."""
    try:
        yield
    except grpc.RpcError as error:
        raise ChannelError(f"{error.code().name.lower()}: {error.details()}") from error
    except ValueError as error:  # "Cannot invoke RPC on closed channel!"
        raise ChannelError(str(error)) from error

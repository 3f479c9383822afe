"""The server's half of a run, in place of `flwr-serverapp`: a task, its heartbeat, its grid.

Flower's own grid ends or interrupts the process when its token is refused, sleeps 3 s between two
looks, and reads the run's identity from process-wide variables. `RunGrid` wraps it and does not.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from wildflower.strategies.errors import LinkError, LinkRefusedError
from wildflower.strategies.flower_compat.messages import (
    SERVER_NODE,
    OwnGrid,
    assume_identity,
    stamp,
)
from wildflower.strategies.flower_compat.transport import (
    BUSY,
    Heartbeat,
    NotThereYetError,
    pull,
    translated,
)

HEARTBEAT_S: Final = 10.0
"""Flower lets a task go after 60 s without one."""

PATIENCE_S: Final = 20.0
"""How long a SuperLink that does not answer is waited for, in seconds."""

UNAVAILABLE: Final = ErrorCode.MESSAGE_UNAVAILABLE
"""Flower's own error code of a reply that cannot be had."""

SERVER: Final = Node(node_id=SERVER_NODE)

POLL_S: Final = 0.1
"""Seconds between two looks for replies in `send_and_receive`."""


class RunGrid(OwnGrid):
    """The grid of one run; every error is a `LinkError`."""

    def __init__(self, grid: HttpGrid, run: Run, task_id: int, heartbeat: Heartbeat) -> None:
        self._grid, self._run, self._task_id, self._heartbeat = grid, run, task_id, heartbeat
        self._announced: dict[str, tuple[Metadata, ObjectTree]] = {}

    def set_run(self, run: Run) -> None:
        """Set the run; a run's grid keeps its own."""

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what is known of the nodes that are online."""
        with self._checked():
            return list(self._grid.get_nodes())

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        return [info.node_id for info in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids in order."""
        outgoing = list(messages)
        for message in outgoing:
            stamp(message, run_id=self._run.run_id, task_id=self._task_id)
        with self._checked():
            return list(self._grid.push_messages(outgoing))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived for some messages.

        Flower's own grid waits for a reply that is announced until its sender has pushed all of it:
        up to two hours for a device that died. And it raises if a reply cannot be put together,
        and loses all others. Here the first is looked for again next time, the second is an error
        in its node's place.
        """
        asked = set(message_ids)
        request = PullAppMessagesRequest(message_ids=asked - set(self._announced))
        with self._checked():
            answer = self._runtime.PullMessages(request)
        for reply, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            metadata = message_from_proto(reply).metadata
            self._announced[metadata.reply_to_message_id] = metadata, tree
        found = []
        for message_id in asked & set(self._announced):
            with contextlib.suppress(NotThereYetError):
                found.append(self._pulled(*self._announced[message_id]))
                del self._announced[message_id]
        return found

    def _pulled(self, metadata: Metadata, tree: ObjectTree) -> Message:
        """Return a reply, under the metadata that the SuperLink checked."""
        run_id = self._run.run_id
        pull_object = make_pull_object_fn_protobuf(self._runtime.PullObject, SERVER, run_id)
        confirmation = ConfirmMessageReceivedRequest(
            node=SERVER, run_id=run_id, message_object_id=tree.object_id
        )
        try:
            with self._checked():
                found = pull(tree, pull_object, wait_s=0.0)
                self._runtime.ConfirmMessageReceived(confirmation)
        except LinkRefusedError as error:
            return make_message(metadata, error=Error(UNAVAILABLE, str(error)))
        if found.has_error():
            return make_message(metadata, error=found.error)
        return make_message(metadata, content=found.content)

    @property
    def _runtime(self) -> RuntimeHttpClient:
        return self._grid._runtime_client  # Flower has no public way to it

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait until all replies are here or `timeout` seconds are over."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting, replies = set(self.push_messages(messages)), list[Message]()
        while waiting and (end is None or time.monotonic() < end):
            found = list(self.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if waiting and not found:
                threading.Event().wait(POLL_S)
        return replies

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        self._heartbeat.check()
        with translated():
            yield


class ServerTask:
    """The server's half of a run; a context manager that yields itself with its `grid`.

    However the body ends, Flower learns it: completed, or failed with the error's sentence.
    """

    grid: RunGrid

    def __init__(self, address: str, *, ca_pem: bytes, token: str) -> None:
        """Prepare; nothing is sent.

        Args:
            address: Where the SuperLink listens, `host:port`.
            ca_pem: Certificate that its TLS certificate is signed by, PEM.
            token: Of the acquired task.
        """
        assume_identity()
        self._grid = HttpGrid(address, insecure=False, root_certificates=ca_pem, token=token)
        self._grid._retry_invoker = _retry()  # its own interrupts the process
        self._heartbeat = Heartbeat(self._beat, HEARTBEAT_S)

    def __enter__(self) -> Self:
        """Begin the task.

        Raises:
            LinkError: The SuperLink does not answer, or the run is over.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._grid.close)
            with translated():
                found = self._runtime.PullTaskInput(PullTaskInputRequest())
            run = run_from_proto(found.run)
            self._grid.set_run(run)
            stack.enter_context(self._heartbeat)
            self.grid = RunGrid(self._grid, run, found.task_id, self._heartbeat)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        failed = error is not None
        output = PushTaskOutputRequest(
            sub_status=SubStatus.FAILED if failed else SubStatus.COMPLETED,
            details=f"{type(error).__name__}: {error}"[:500] if failed else "",
        )
        self._grid._retry_invoker.max_time = 0.0  # whoever is away now is not waited for
        with self._exit, contextlib.suppress(LinkError), translated():
            self._runtime.PushTaskOutput(output)

    @property
    def run_id(self) -> int:
        """The run's id."""
        return self.grid.run.run_id

    @property
    def _runtime(self) -> RuntimeHttpClient:
        return self._grid._runtime_client  # Flower has no public way to it

    def _beat(self) -> bool:
        return self._runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success


def _retry() -> RetryInvoker:
    """Return Flower's retrying, bounded, and only for what may pass."""
    return RetryInvoker(
        lambda: constant(0.25),
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=PATIENCE_S,
        should_giveup=_is_refusal,
    )


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in BUSY

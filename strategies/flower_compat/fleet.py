"""A device's connection to Flower's Fleet API, in place of `flower-supernode`.

It takes an SSL context, so that it can present the device certificate to the gateway; Flower's own
connection takes a CA file only. It never asks for the app of a run: what is trained is the
device's own decision.
"""

import contextlib
import ssl
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from wildflower.strategies.errors import LinkError, LinkRefusedError, RunEndedError
from wildflower.strategies.flower_compat.messages import name
from wildflower.strategies.flower_compat.transport import Heartbeat, call, pull, push

HEARTBEAT_S: Final = 10.0
"""The shortest that Flower allows; a node that missed two is offline, and can connect again."""

PATIENCE_S: Final = 20.0
"""How long a message is waited for that is announced, and a reply pushed while nobody answers."""


class FleetConnection:
    """One node's connection; a context manager.

    Example:
        >>> with FleetConnection(url, tls=context, key=key) as connection:  # doctest: +SKIP
        ...     message = connection.receive()
    """

    def __init__(
        self, url: str, *, tls: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, last_node: int = 0
    ) -> None:
        """Prepare a connection; nothing is sent before `__enter__`.

        Args:
            url: Where `/v1/fleet` is served, `https://host:port`.
            tls: Trusts the server, and presents the device certificate where one is demanded.
            key: The node's key; its public half was registered by the operator.
            last_node: Node id of the connection before; lets a process that was killed come back
                before its heartbeats have run out. 0 if there was none.
        """
        self._key, self._last_node = key, last_node
        self._client = FleetHttpClient(
            url, interceptors=[NodeAuthHttpInterceptor(key, key.public_key())], verify=tls
        )
        self._heartbeat = Heartbeat(self._beat, HEARTBEAT_S)
        self._node = Node()

    def __enter__(self) -> Self:
        """Come online.

        Raises:
            UnreachableError: Nobody answers.
            LinkRefusedError: The key is not registered, or the node is still thought online.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._client.close)
            self._node = Node(node_id=self._activate())
            stack.callback(self._deactivate, self._node.node_id)
            stack.enter_context(self._heartbeat)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def node_id(self) -> int:
        """The node's id at this SuperLink."""
        return self._node.node_id

    def receive(self) -> Message | None:
        """Return the next message for this node, or None if there is none.

        Raises:
            LinkError: The SuperLink does not answer, or does not know the node any more.
        """
        self._heartbeat.check()
        answer = call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        run_id = answer.messages_list[0].metadata.run_id
        tree = answer.message_object_trees[0]
        pull_object = make_pull_object_fn_protobuf(self._pull_object, self._node, run_id)
        message = pull(tree, pull_object, wait_s=PATIENCE_S)
        confirmation = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=tree.object_id
        )
        call(self._client.ConfirmMessageReceived, confirmation, patience_s=PATIENCE_S)
        return message

    def reply(self, message: Message, *, runtime_s: float = 0.0) -> None:
        """Send a reply; it is repeated for a while if nobody answers.

        Args:
            message: A reply to a message that was received here.
            runtime_s: How long the app took; Flower keeps it for its own statistics.

        Raises:
            RunEndedError: The run is over: nobody waits for the reply.
            LinkError: The SuperLink does not answer, or refuses.
        """
        run_id = message.metadata.run_id
        with no_object_id_recompute():
            name(message, message.object_id)
            bare = remove_content_from_message(message) if message.has_content() else message
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[get_object_tree(message)],
                clientapp_runtime_list=[runtime_s],
            )
            answer = call(self._client.PushMessages, request, patience_s=PATIENCE_S)
            push_object = make_push_object_fn_protobuf(
                self._push_object, self._node, run_id, answer.session_id
            )
            push(message, push_object, set(answer.objects_to_push))

    def is_running(self, run_id: int) -> bool:
        """Tell whether a run goes on.

        Raises:
            LinkError: The SuperLink does not answer, or refuses.
        """
        try:
            call(self._client.GetRun, GetRunRequest(node=self._node, run_id=run_id))
        except RunEndedError:
            return False
        return True

    def _activate(self) -> int:
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=HEARTBEAT_S
        )
        try:
            return call(self._client.ActivateNode, request).node_id
        except LinkRefusedError:
            if not self._last_node:
                raise
        self._deactivate(self._last_node)
        return call(self._client.ActivateNode, request).node_id

    def _deactivate(self, node_id: int) -> None:
        with contextlib.suppress(LinkError):  # going offline is a courtesy
            call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node_id))

    def _beat(self) -> bool:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        return self._client.SendNodeHeartbeat(request).success

    def _pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        return call(self._client.PullObject, request, patience_s=PATIENCE_S)

    def _push_object(self, request: PushObjectRequest) -> PushObjectResponse:
        return call(self._client.PushObject, request, patience_s=PATIENCE_S)

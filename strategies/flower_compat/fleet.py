"""A device's connection to Flower's Fleet API, in place of `flower-supernode`.

It takes an SSL context, so that it can present the device certificate to the gateway; Flower's own
connection takes a CA file only. It never asks for the app of a run: what is trained is the
device's own decision.
"""

import contextlib
import ssl
import time
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
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from wildflower.strategies.errors import LinkRefusedError, RunEndedError
from wildflower.strategies.flower_compat.messages import name
from wildflower.strategies.flower_compat.transport import Heartbeat, call, pull, push

HEARTBEAT_S: Final = 10.0
"""The shortest that Flower allows; a node that missed two is offline, and can connect again."""

PATIENCE_S: Final = 20.0
"""How long a reply is pushed while the other side does not answer, in seconds."""


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
        with translated():
            message = pull(
                tree,
                make_pull_object_fn_protobuf(self._pull_object, self._node, run_id),
            )
        call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=run_id, message_object_id=tree.object_id
            ),
            patience_s=PATIENCE_S,
        )
        return message

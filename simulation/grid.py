"""A fleet in one process: a Flower `Grid` whose nodes are called as functions.

It drives the very ClientApp and mods that run on devices, and the very rounds that run on the
server; what is missing is the network between them. Thousands of messages a second pass through
it: each node gets record containers of its own, the payload bytes are shared.

Nodes can be made to die at a message of some type, before or after they handled it (`dies`).
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, unique
from typing import Final

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from wildflower.strategies.flower_compat.messages import (
    FlowerRun,
    OwnGrid,
    assume_identity,
    empty_run,
    name,
    stamp,
    with_content,
)

App = Callable[[Message, Context], Message]
"""A ClientApp with its mods around it, or anything that is called like one."""

BATCH: Final = 32
"""Nodes that are called for one look for replies; bounds the replies held at once."""

RUN_ID: Final = 1
RAISED: Final = 2
"""The error code that Flower's SuperNode gives to what an app raised."""


@unique
class Death(Enum):
    """When a node dies."""

    BEFORE = "it never sees the message"
    AFTER = "it handles the message, and its answer is lost"


class InProcessGrid(OwnGrid):
    """A grid of nodes that live in this process.

    Example:
        >>> grid = InProcessGrid({7: lambda message, _: Message(message.content, reply_to=message)})
        >>> [reply] = grid.send_and_receive([Message(RecordDict(), 7, "query")])
        >>> reply.metadata.src_node_id
        7
    """

    def __init__(
        self,
        apps: Mapping[int, App],
        *,
        dies: Mapping[tuple[int, str], Death] | None = None,
        watch: Callable[[Message], None] = lambda _: None,
    ) -> None:
        """Build the fleet.

        Args:
            apps: What each node runs, by node id; ids are above 1, which is the server's.
            dies: At which message type a node dies, and when.
            watch: Is shown every message that is carried, either way.
        """
        assume_identity()
        self._apps, self._watch = dict(apps), watch
        self.dies: dict[tuple[int, str], Death] = dict(dies or {})
        """At which message type a node dies, and when."""
        self._run = empty_run(RUN_ID)
        self._contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config={"partition-id": index, "num-partitions": len(self._apps)},
                state=RecordDict(),
                run_config={},
            )
            for index, node in enumerate(self._apps)
        }
        self._ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._dead: set[int] = set()
        # Several threads may ask, as grouped rounds do; nodes are called one at a time. numpy reads
        # an array's header as Python, and CPython before 3.11.8 fails at times when two threads do
        # so at once (gh-106905).
        self._turn = threading.Lock()

    def is_gone(self, node: int) -> bool:
        """Tell whether a node is dead."""
        return node in self._dead

    def revive(self, node: int) -> None:
        """Let a dead node come back; what was sent to it meanwhile is lost."""
        self._dead.discard(node)

    def set_run(self, run: FlowerRun) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The run."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that live."""
        return [node for node in self._apps if node not in self._dead]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; a node handles its own when its reply is looked for."""
        ids = []
        for message in messages:
            stamp(message, run_id=self._run.run_id)
            name(message, f"m{next(self._ids)}")
            self._watch(message)
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the next nodes handle their messages; return their replies."""
        asked = [self._waiting.pop(key) for key in message_ids if key in self._waiting]
        now, later = asked[:BATCH], asked[BATCH:]
        self._waiting.update({message.metadata.message_id: message for message in later})
        replies = [reply for reply in map(self._handle, now) if reply is not None]
        for reply in replies:
            self._watch(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies of the nodes that live."""
        end = None if timeout is None else time.monotonic() + timeout
        ids, replies = list(self.push_messages(messages)), list[Message]()
        while any(key in self._waiting for key in ids) and (end is None or time.monotonic() < end):
            replies += self.pull_messages(ids)
        return replies

    def _handle(self, message: Message) -> Message | None:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        death = self.dies.get((node, kind))
        if node in self._dead or death is Death.BEFORE:
            self._dead.add(node)
            return None
        reply = self._called(node, message)
        if death is Death.AFTER:
            self._dead.add(node)
            return None
        name(reply, f"r{next(self._ids)}")
        return reply

    def _called(self, node: int, message: Message) -> Message:
        own = with_content(message, _isolated(message.content))
        try:
            with self._turn:
                return self._apps[node](own, self._contexts[node])
        except Exception as error:  # noqa: BLE001  # as Flower's SuperNode does with a user's app
            return Message(Error(RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


def _isolated(content: RecordDict) -> RecordDict:
    """Return containers of its own for one node; arrays and texts are shared, never changed."""
    return RecordDict({key: _copied(record) for key, record in content.items()})


def _copied(
    record: ArrayRecord | MetricRecord | ConfigRecord,
) -> ArrayRecord | MetricRecord | ConfigRecord:
    match record:
        case ArrayRecord():
            return ArrayRecord(dict(record))
        case MetricRecord():
            return MetricRecord(dict(record))
        case ConfigRecord():
            return ConfigRecord(dict(record))

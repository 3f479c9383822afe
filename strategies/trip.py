"""One trip: a message to each of many nodes, and their answers.

A trip ends when everyone has answered, is gone, or its time is over. Nothing is asked twice: a
node that lost a message has lost its place in the round. What a node sends can make that node a
refusal, never the trip a failure.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from wildflower.strategies.errors import RoundAbortedError, StrategyError
from wildflower.strategies.flower_compat.messages import assume_identity

log = logging.getLogger(__name__)

LATE_S: Final = 5.0
"""Seconds that a message outlives its trip: an answer on its way is not an error."""

Take = Callable[[int, RecordDict], None]
"""Takes one node's answer; a `StrategyError` refuses it."""


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass
class Trips:
    """The trips of one round, and what they leave behind.

    Attributes:
        grid: Reaches the nodes.
        group: Names the round in Flower's own records.
        quorum: Fewest nodes with which the round goes on.
        is_gone: Tells whether a node lost its connection since the round began.
        poll_s: Seconds between two looks for answers.
        on_stage: Is told the name of each stage as it begins.
        refusals: Node id to why it is not in the sum.
        stages: Seconds that each stage took.
    """

    grid: Grid
    group: str
    quorum: int
    is_gone: Callable[[int], bool]
    poll_s: float
    on_stage: Callable[[str], None] = _silent
    refusals: dict[int, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)

    def require(self, left: Sequence[int], did: str) -> None:
        """Go on only with the quorum.

        Raises:
            RoundAbortedError: Fewer nodes are left.
        """
        if len(left) < self.quorum:
            reasons = "; ".join(sorted(set(self.refusals.values()))[:3])
            raise RoundAbortedError(
                f"{len(left)} devices {did}, at least {self.quorum} are needed"
                + (f" ({reasons})" if reasons else ""),
                hint="See which devices are connected, or lower the quorum.",
            )

    def trip(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        take: Take,
        *,
        timeout_s: float,
        stage: str,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        """Send each node its message and take the answers.

        Args:
            kind: The message type.
            contents: What each node gets.
            take: Takes an answer, or refuses it.
            timeout_s: How long to wait, in seconds.
            stage: The stage's name.
            is_enough: Tells that waiting on cannot change the outcome.

        Returns:
            The nodes whose answers were taken, as they came.

        Raises:
            LinkError: The grid lost its SuperLink.
        """
        self.on_stage(stage)
        start = time.monotonic()
        waiting = self._send(kind, contents, ttl=timeout_s + LATE_S)
        taken: list[int] = []
        while waiting:
            gone = [message for message, node in waiting.items() if self.is_gone(node)]
            found = list(self.grid.pull_messages(list(waiting)))
            for reply in found:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None and self._accepts(node, reply, take):
                    taken.append(node)
            for message in gone:  # looked up before the answers: the last one may be among them
                if node := waiting.pop(message, 0):
                    self.refuse(node, f"lost its connection ({stage})")
            if is_enough() or time.monotonic() - start > timeout_s:
                break
            if not found and waiting:
                threading.Event().wait(self.poll_s)
        for node in waiting.values():
            self.refuse(node, f"did not answer in time ({stage})")
        self.stages[stage] = time.monotonic() - start
        return taken

    def refuse(self, node: int, reason: str) -> None:
        """Note why a node is not in the sum."""
        log.info("device left out", extra={"node": node, "reason": reason})
        self.refusals[node] = reason

    def _send(self, kind: str, contents: Mapping[int, RecordDict], ttl: float) -> dict[str, int]:
        """Send the messages; return the node of each message id."""
        assume_identity()
        messages = [
            # an id is the hash of what is sent: a nonce keeps other devices from guessing it
            Message(content, node, kind, group_id=f"{self.group}/{secrets.token_hex(8)}", ttl=ttl)
            for node, content in contents.items()
        ]
        waiting: dict[str, int] = {}
        for node, message in zip(contents, self.grid.push_messages(messages), strict=True):
            if message:
                waiting[message] = node
            else:
                self.refuse(node, "is not known to the SuperLink")
        return waiting

    def _accepts(self, node: int, reply: Message, take: Take) -> bool:
        if reply.has_error():
            self.refuse(node, reply.error.reason or f"error {reply.error.code}")
            return False
        try:
            take(node, reply.content)
        except StrategyError as error:
            self.refuse(node, str(error))
            return False
        return True

"""Messages outside of a run that Flower's own programs started.

Flower keeps the identity of the running task in process-wide variables, and the constructor of a
message reads them. A process of ours serves several runs at once, so its grids write the run's
identity into each message as they send it (`stamp`); the variables only need to hold something.
"""

from typing import Final

from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FlowerRun = Run
"""Flower's type of a run, which the signatures of a `Grid` name."""

SERVER_NODE: Final = 1
"""Node id of the server's side of a run, as Flower's SuperLink has it."""


class OwnGrid(Grid):
    """What the grids of ours have in common: how a message is made; `stamp` says whose it is."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def assume_identity() -> None:
    """Let this process build messages: give Flower's process-wide variables values, if unset."""
    if TaskIdentity._task_id is None:  # its property raises where it is unset
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, SERVER_NODE


def stamp(message: Message, *, run_id: int, task_id: int | None = None) -> None:
    """Write the identity of the sending run into a message that was built in this process."""
    message.metadata.__dict__.update(_run_id=run_id, _src_node_id=SERVER_NODE, _src_task_id=task_id)


def name(message: Message, message_id: str) -> None:
    """Give a message its id, as the SuperLink does."""
    message.metadata.__dict__["_message_id"] = message_id


def with_content(message: Message, content: RecordDict) -> Message:
    """Return the message with other content, and the very same metadata."""
    return make_message(metadata=message.metadata, content=content)


def empty_run(run_id: int) -> FlowerRun:
    """Return a run without a SuperLink behind it."""
    return Run.create_empty(run_id)

"""The ways in which an update leaves a device other than in plain.

    secagg      four trips, masks that cancel         `secagg.protection.SecAgg`
    one-shot    one trip, masks that helpers take off  `secagg.one_shot_protection.OneShot`
    he          one trip, encrypted to a key holder    `he.protection.Homomorphic`

The mod of the client app hands a message to the one whose record it carries; the device's policy
asks every one of them whether it made what is about to leave.
"""

from collections.abc import Callable
from typing import Any, Protocol

from wildflower.strategies.arrays import Update
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.round_messages import Fielded

Train = Callable[[SumEncoding], Update]
"""Has the app train or evaluate and returns its update, checked and within the round's rule, with
the statistics that the encoding names."""


class Protection(Protocol):
    """One way of protecting updates.

    Promises: what `answer` returns is stored before it is returned, so that a device that restarts
    gives the same answer again or none; of one session at most one protected update ever leaves.
    """

    @property
    def record(self) -> str:
        """Name of the ConfigRecord that asks for it and carries its answers."""
        ...

    def answer(self, kind: str, fields: dict[str, Any], train: Train) -> Fielded:
        """Answer a message.

        Args:
            kind: Flower's type of the message.
            fields: What the record of that name held.
            train: Gives the update; called at most once, and only for a training or evaluation.

        Raises:
            StrategyError: It is refused; the reason says why.
        """
        ...

    def made(self, fields: dict[str, Any]) -> bool:
        """Tell whether this very answer was made, and stored, here."""
        ...

    def end_all(self) -> None:
        """Forget every session: the training is over."""
        ...

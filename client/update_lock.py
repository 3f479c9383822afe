"""The update lock: what keeps a new release out of a device, its owner and applications that hold.

The machine is not told: an effect that may not be carried out now is postponed and stays owed, as
without a network. The owner stops everything new; who holds stops the moment of the switch alone,
so that downloads and trials go on. Leaving a release is never stopped here.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wildflower.client.hold import Holds
from wildflower.client.owner import load_owner
from wildflower.client.policy import Policy
from wildflower.ota.device.effects import (
    Commit,
    Discard,
    Effect,
    Quarantine,
    Report,
    RollBack,
    Switch,
    Watch,
)
from wildflower.ota.device.machine import Event
from wildflower.ota.device.shell import Runner
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import PostponedError

log = logging.getLogger(__name__)

UNSTOPPED: Final = (Watch, Commit, Quarantine, RollBack, Discard, Report)
"""What follows a switch, or leads away from a release."""


@dataclass(slots=True)
class UpdateLock:
    """The update lock of one device.

    Attributes:
        directory: The device's directory.
        slots: Its slots.
        holds: Who holds the model.
        waiting: What an update waited for when it was last looked at, each in a sentence.
        is_held: Whether that is an application, which will end its hold soon.
    """

    directory: Path
    slots: Slots
    holds: Holds = field(init=False)
    waiting: tuple[str, ...] = ()
    is_held: bool = False

    def __post_init__(self) -> None:
        """Look at the device's holds."""
        self.holds = Holds(self.directory)

    def around(self, run: Runner) -> Runner:
        """Return a runner that carries out what may be carried out now.

        It raises PostponedError for the rest.
        """

        def locked(effect: Effect) -> Event:
            self.waiting, self.is_held = (), False
            if isinstance(effect, UNSTOPPED):
                return run(effect)
            if why := self.obstacle(effect.release.digest):
                self._postpone((why,))
            if isinstance(effect, Switch):
                with self.unheld():
                    return run(effect)
            return run(effect)

        return locked

    @contextmanager
    def unheld(self) -> Iterator[None]:
        """Keep new holds waiting for the length of the block.

        Raises:
            PostponedError: Somebody holds already; the block is not entered.
        """
        with self.holds.switching() as held:
            if held:
                self.is_held = True
                self._postpone(held)
            yield

    @property
    def paused(self) -> str:
        """Why the owner lets nothing new in; "" if it is let in."""
        return load_owner(self.directory).paused

    def obstacle(self, release: str) -> str:
        """Return what the owner decided against a release; "" for nothing."""
        return load_owner(self.directory).obstacle(release, self.slots.running())

    def keeps(self, release: str, policy: Policy) -> bool:
        """Whether the owner keeps a release that a signed order says to leave."""
        return policy.pinned_recall == "keep" and load_owner(self.directory).pinned == release

    def _postpone(self, why: tuple[str, ...]) -> None:
        self.waiting = why
        raise PostponedError("; ".join(why))

"""The thin shell around `ota.device.machine`: it stores states and runs what they owe."""

import logging
from collections.abc import Callable
from typing import Protocol

from wildflower.ota.device.effects import Effect
from wildflower.ota.device.machine import Event, Phase, State, Woke, owed, step

log = logging.getLogger(__name__)


class StateStore(Protocol):
    """Where a device keeps its state across reboots."""

    def load(self) -> State:
        """Return the state last saved, or `State()` on a fresh device."""
        ...

    def save(self, state: State) -> None:
        """Save atomically: after a power cut `load` returns the old state or the new one."""
        ...


Runner = Callable[[Effect], Event]
"""Carries out one effect and says what came of it; raises PostponedError if it cannot now."""


def handle(store: StateStore, run: Runner, event: Event) -> None:
    """Feed `event` to the machine, then work until nothing is owed.

    Raises:
        IllegalEventError: The stored phase does not accept `event`; nothing was done.
        PostponedError: An effect cannot go on now; the state says where to resume.
        StorageError: The state cannot be stored; nothing that it owes was done.
    """
    store.save(state := step(store.load(), event))
    _tell(state)
    resume(store, run)


def resume(store: StateStore, run: Runner) -> None:
    """Go on with what a postponement left owed.

    Raises:
        PostponedError: It cannot go on now either.
        StorageError: A state cannot be stored.
    """
    state = store.load()
    while effect := owed(state):
        store.save(state := step(state, run(effect)))
        _tell(state)


def wake(store: StateStore, run: Runner, received: int) -> None:
    """Pick up after a crash, counting it against loops.

    Args:
        store: Where the state is.
        run: Carries out effects.
        received: Bytes of the release on disk; more than last time is progress.

    Raises:
        PostponedError: An effect cannot go on now; the state says where to resume.
        StorageError: A state cannot be stored.
    """
    if store.load().phase is not Phase.IDLE:
        handle(store, run, Woke(received))


def _tell(state: State) -> None:
    fields = {"phase": state.phase.value, "release": state.digest[:12], "attempt": state.attempt}
    log.info("update %s", state.phase.value, extra=fields | {"reason": state.reason})

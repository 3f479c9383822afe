"""The thin shell around `ota.device.machine`: it stores states and runs what they owe."""

import logging
from collections.abc import Callable
from typing import Protocol

from wildflower.ota.device.machine import Effect, Event, Phase, State, Woke, owed, step

log = logging.getLogger(__name__)


class InterruptedUpdateError(Exception):
    """An effect cannot go on now (no network, told to stop); it stays owed and is tried later."""


class StateStore(Protocol):
    """Where a device keeps its state across reboots."""

    def load(self) -> State:
        """Return the state last saved, or `State()` on a fresh device."""
        ...

    def save(self, state: State) -> None:
        """Save atomically: after a power cut `load` returns the old state or the new one."""
        ...


Runner = Callable[[Effect], Event]
"""Carries out one effect and says what came of it; may raise `InterruptedUpdateError`."""


def handle(store: StateStore, run: Runner, event: Event) -> None:
    """Feed `event` to the machine, then work until nothing is owed.

    Raises:
        IllegalEventError: The stored phase does not accept `event`; nothing was done.
        InterruptedUpdateError: An effect cannot go on now; the state says where to resume.
    """
    store.save(state := step(store.load(), event))
    _work(store, run, state)


def resume(store: StateStore, run: Runner) -> None:
    """Go on with what an interruption left owed.

    Raises:
        InterruptedUpdateError: It cannot go on now either.
    """
    _work(store, run, store.load())


def wake(store: StateStore, run: Runner) -> None:
    """Pick up after a reboot or a crash, counting it against loops.

    Raises:
        InterruptedUpdateError: An effect cannot go on now; the state says where to resume.
    """
    if store.load().phase is not Phase.IDLE:
        handle(store, run, Woke())


def _work(store: StateStore, run: Runner, state: State) -> None:
    while effect := owed(state):
        store.save(state := step(state, run(effect)))
        log.info("update", extra={"phase": state.phase.value, "release": state.release[:12]})

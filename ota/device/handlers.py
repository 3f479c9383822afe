"""How software other than models is installed: one program on the device, called step by step.

The steps are those of Mender's update modules, without the ones that only an operating system
needs. Every phase owes at most one act, and the state is stored before it is carried out, so that a
power cut repeats a step and never skips one: a handler must bear to be called twice.

    Download      look at the files, refuse them while nothing has been touched
    Install       put them beside what is there, or in its place
    NeedsRestart  say "yes" if the agent must be started anew before it can be judged
    Commit        see that what was installed works; from now on it stays
    Rollback      put back what was there before

Deviations from Mender: no state scripts, no artifact verification (TUF has done it), and a rollback
that every handler must know: what cannot be undone should not be sent to thousands of devices.

    State.from_bytes(state.to_bytes()) == state
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from typing import Final, Self, assert_never

from wildflower.ota import canonical
from wildflower.ota.device.report import MAX_REASON
from wildflower.ota.errors import FormatError, IllegalEventError
from wildflower.ota.release.software import Software

KIND: Final = "wildflower.software-state"
MAX_WAKES: Final = 3
"""Restarts tolerated in one step: a handler that ends the agent again and again is given up."""


@unique
class Step(StrEnum):
    """What a handler is asked to do; the value is its first argument."""

    DOWNLOAD = "Download"
    INSTALL = "Install"
    NEEDS_RESTART = "NeedsRestart"
    COMMIT = "Commit"
    ROLLBACK = "Rollback"


@unique
class Phase(StrEnum):
    """Where an installation is."""

    IDLE = "idle"
    FETCHING = "fetching"
    DOWNLOADED = "downloaded"
    INSTALLING = "installing"
    INSTALLED = "installed"
    RESTARTING = "restarting"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling-back"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class State:
    """What survives a reboot.

    Attributes:
        phase: The current phase.
        software: What it is about; None in IDLE.
        wakes: Restarts in this phase.
        reason: Why it failed, in a sentence; "" while it has not.
    """

    phase: Phase = Phase.IDLE
    software: Software | None = None
    wakes: int = 0
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is stored."""
        document = self.software.to_bytes().decode() if self.software is not None else ""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "phase": self.phase.value,
                "software": document,
                "wakes": self.wakes,
                "reason": self.reason,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            FormatError: Not such a state, or one that the machine cannot be in.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            text = document["software"]
            state = cls(
                phase=Phase(document["phase"]),
                software=Software.from_bytes(text.encode()) if text else None,
                wakes=int(document["wakes"]),
                reason=str(document["reason"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"software state: {error!r}") from error
        if (state.software is None) != (state.phase is Phase.IDLE):
            raise FormatError(f"software state: phase {state.phase} and its software contradict")
        return state


@dataclass(frozen=True, slots=True)
class Offered:
    """Software that is signed for this device, and that its owner accepts."""

    software: Software


@dataclass(frozen=True, slots=True)
class Done:
    """The owed act succeeded."""


@dataclass(frozen=True, slots=True)
class MustRestart:
    """The handler wants the agent to be started anew."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The owed act cannot succeed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The agent came back from a restart."""


Event = Offered | Done | MustRestart | Failed | Woke


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the files; what is on disk already is found by its digest."""

    software: Software


@dataclass(frozen=True, slots=True)
class Call:
    """Call the handler with a step."""

    software: Software
    step: Step


@dataclass(frozen=True, slots=True)
class Restart:
    """End the agent, so that whoever supervises it starts it anew."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell how it ended, once, and remove the files."""

    software: Software
    reason: str


Act = Fetch | Call | Restart | Report

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], Phase]]] = {
    Phase.IDLE: {Offered: Phase.FETCHING},
    Phase.FETCHING: {Done: Phase.DOWNLOADED, Failed: Phase.ENDED},
    Phase.DOWNLOADED: {Done: Phase.INSTALLING, Failed: Phase.ENDED},
    Phase.INSTALLING: {Done: Phase.INSTALLED, Failed: Phase.ROLLING_BACK},
    Phase.INSTALLED: {
        Done: Phase.COMMITTING,
        MustRestart: Phase.RESTARTING,
        Failed: Phase.ROLLING_BACK,
    },
    Phase.RESTARTING: {Woke: Phase.COMMITTING, Failed: Phase.ROLLING_BACK},
    Phase.COMMITTING: {Done: Phase.ENDED, Failed: Phase.ROLLING_BACK},
    Phase.ROLLING_BACK: {Done: Phase.ENDED, Failed: Phase.ENDED},
    Phase.ENDED: {Done: Phase.IDLE},
}
"""The whole protocol on one screen. Elsewhere than in RESTARTING, `Woke` is only counted."""

_STEPS: Final[Mapping[Phase, Step]] = {
    Phase.DOWNLOADED: Step.DOWNLOAD,
    Phase.INSTALLING: Step.INSTALL,
    Phase.INSTALLED: Step.NEEDS_RESTART,
    Phase.COMMITTING: Step.COMMIT,
    Phase.ROLLING_BACK: Step.ROLLBACK,
}


def step(state: State, event: Event) -> State:
    """Return the state that follows `event`.

    Raises:
        IllegalEventError: The phase does not accept the event; `state` stands.
    """
    target = TRANSITIONS[state.phase].get(type(event))
    if target is None and isinstance(event, Woke):
        return _woke(state)
    if target is None:
        raise IllegalEventError(f"{type(event).__name__} in phase {state.phase}")
    if target is Phase.IDLE:
        return State()
    moved = replace(state, phase=target, wakes=0)
    match event:
        case Offered(software):
            return State(target, software)
        case Failed(reason):
            told = f"{state.reason}; then {reason}" if state.reason else reason
            return replace(moved, reason=told[:MAX_REASON])
        case Done() | MustRestart() | Woke():
            return moved
        case _:
            assert_never(event)


def owed(state: State) -> Act | None:
    """Return the one act that `state` still owes; None when there is nothing to do."""
    if state.software is None:
        return None
    called = _STEPS.get(state.phase)
    if called is not None:
        return Call(state.software, called)
    match state.phase:
        case Phase.FETCHING:
            return Fetch(state.software)
        case Phase.RESTARTING:
            return Restart()
        case _:
            return Report(state.software, state.reason)


def _woke(state: State) -> State:
    """Count a restart; past the limit the step has failed, where it can."""
    if state.phase is Phase.IDLE:
        return state
    woken = replace(state, wakes=state.wakes + 1)
    may_fail = state.phase in _STEPS  # fetching goes on for as long as it takes
    if woken.wakes <= MAX_WAKES or not may_fail:
        return woken
    return step(woken, Failed(f"the agent went down {woken.wakes} times in {_STEPS[state.phase]}"))

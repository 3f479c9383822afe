"""A device's update lifecycle, with no I/O in it.

Every phase owes the world at most one effect, so the stored state alone says what to do next:

    state = step(state, event)    # what happened  -> where we are
    effect = owed(state)          # where we are   -> what to do

The caller (`ota.device.shell`) stores each state before it runs the effect that state owes. A
power cut can therefore only repeat an effect, never skip one, and effects must be idempotent.

Words follow the A/B vocabulary of RAUC and Mender: a release is *staged* beside the old one, runs
on *trial*, then on *probation*, and is *committed* or *rolled back*. Where we differ from them: the
trial comes before the pointer moves. A model needs no reboot to be tried, so nobody ever runs an
untried one. On probation it runs for everybody, and the one before it comes back by itself unless
the device decides otherwise in time.

A release that failed its trial or its probation is *quarantined* by the digest of its manifest, not
of its model file: what was wrong may be the golden outputs or the budget, and those can be signed
anew.

    State.from_bytes(state.to_bytes()) == state

Example:
    >>> owed(step(State(), Woke())) is None
    True
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum, unique
from typing import Final, Self, assert_never

from wildflower.ota import canonical
from wildflower.ota.device.effects import (
    Commit,
    Confirm,
    Discard,
    Effect,
    Fetch,
    Qualify,
    Quarantine,
    Report,
    RollBack,
    Stage,
    Switch,
    Try,
    Verify,
    Watch,
)
from wildflower.ota.device.report import MAX_REASON, Outcome
from wildflower.ota.errors import FormatError, IllegalEventError
from wildflower.ota.release.manifest import Release

KIND: Final = "wildflower.device-state"
MAX_WAKES: Final = 5
"""Restarts tolerated in one phase without progress before the update is given up."""
MAX_TRIAL_WAKES: Final = 1
"""Restarts tolerated in a trial: one may be chance; a model that ends the agent twice is bad."""
MAX_PROBATION_WAKES: Final = 3
"""Crashes and power cuts tolerated on probation; a longer window meets more of them by chance."""


@unique
class Phase(StrEnum):
    """Where in the lifecycle a device is."""

    IDLE = "idle"
    CHECKED = "checked"
    FETCHING = "fetching"
    FETCHED = "fetched"
    VERIFIED = "verified"
    STAGED = "staged"
    TRIAL = "trial"
    PASSED = "passed"
    PROBATION = "probation"
    COMMITTED = "committed"
    QUARANTINED = "quarantined"
    ROLLED_BACK = "rolled-back"
    REPORTED = "reported"
    PAUSED = "paused"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class State:
    """What survives a reboot.

    Attributes:
        phase: The current phase.
        release: The release it is about; None in IDLE.
        rollout: Id of the rollout that asked for it.
        attempt: Counts the device's updates from 1; what an effect did is known by it.
        received: Bytes of the release on disk when the device last woke.
        wakes: Restarts in this phase since there was progress.
        outcome: How it ended; None while it has not.
        reason: Why it failed, in a sentence; "" while it has not.
        since: When it began to run on probation; None before.
    """

    phase: Phase = Phase.IDLE
    release: Release | None = None
    rollout: str = ""
    attempt: int = 0
    received: int = 0
    wakes: int = 0
    outcome: Outcome | None = None
    reason: str = ""
    since: datetime | None = None

    @property
    def digest(self) -> str:
        """Digest of the release's manifest; "" in IDLE."""
        return self.release.digest if self.release is not None else ""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is stored."""
        manifest = self.release.to_bytes().decode() if self.release is not None else ""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "phase": self.phase.value,
                "release": manifest,
                "rollout": self.rollout,
                "attempt": self.attempt,
                "received": self.received,
                "wakes": self.wakes,
                "outcome": self.outcome.value if self.outcome is not None else "",
                "reason": self.reason,
                "since": canonical.to_time(self.since) if self.since is not None else "",
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            FormatError: Not a device state, or one that the machine cannot be in.
        """
        document = canonical.from_bytes(data, kind=KIND)
        since = document.get("since", "")  # agents before probation did not write it
        try:
            state = cls(
                phase=Phase(document["phase"]),
                release=_manifest(document["release"]),
                rollout=str(document["rollout"]),
                attempt=int(document["attempt"]),
                received=int(document["received"]),
                wakes=int(document["wakes"]),
                outcome=Outcome(document["outcome"]) if document["outcome"] else None,
                reason=str(document["reason"]),
                since=canonical.from_time(since) if since else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"device state: {error!r}") from error
        if (state.release is None) != (state.phase is Phase.IDLE):
            raise FormatError(f"device state: phase {state.phase} and its release contradict")
        if state.phase is Phase.REPORTED and state.outcome is None:
            raise FormatError("device state: an end without its outcome")
        if state.phase is Phase.PROBATION and state.since is None:
            raise FormatError("device state: a probation without its beginning")
        return state


@dataclass(frozen=True, slots=True)
class Offered:
    """A rollout admits this device to a release whose manifest is verified."""

    release: Release
    rollout: str


@dataclass(frozen=True, slots=True)
class Recalled:
    """A signed order sends this device back to its own previous slot.

    Attributes:
        release: The release that it runs, on probation or for good, and shall leave.
        rollout: The rollout that orders it.
    """

    release: Release
    rollout: str


@dataclass(frozen=True, slots=True)
class Done:
    """The owed effect succeeded."""


@dataclass(frozen=True, slots=True)
class Switched:
    """The release is what everybody runs from now on."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The release's probation ends without a verdict: nothing says that it is bad."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The owed effect cannot succeed; `reason` is reported to the server."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The rollout holds its breath: what has not been tried yet waits."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The rollout goes on."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The rollout no longer wants this release on this device."""


@dataclass(frozen=True, slots=True)
class Woke:
    """The agent came back from a restart; `received` bytes of the release are on disk."""

    received: int = 0


Outside = Offered | Recalled | Paused | Resumed | Withdrawn
Event = Outside | Done | Switched | Abandoned | Failed | Woke


_UNDECIDED: Final[Mapping[type[Event], Phase]] = {
    Failed: Phase.REPORTED,
    Paused: Phase.PAUSED,
    Withdrawn: Phase.CANCELLED,
}
"""Until a release is tried, anything may still stop it, and nothing needs to be undone."""

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], Phase]]] = {
    Phase.IDLE: {Offered: Phase.CHECKED, Recalled: Phase.ROLLED_BACK},
    Phase.CHECKED: {Done: Phase.FETCHING, **_UNDECIDED},
    Phase.FETCHING: {Done: Phase.FETCHED, **_UNDECIDED},
    Phase.FETCHED: {Done: Phase.VERIFIED, **_UNDECIDED},
    Phase.VERIFIED: {Done: Phase.STAGED, **_UNDECIDED},
    Phase.STAGED: {Done: Phase.TRIAL, **_UNDECIDED},
    Phase.TRIAL: {Done: Phase.PASSED, Failed: Phase.QUARANTINED},
    Phase.PASSED: {Switched: Phase.PROBATION, Failed: Phase.ROLLED_BACK},
    Phase.PROBATION: {
        Done: Phase.COMMITTED,
        Failed: Phase.QUARANTINED,
        Abandoned: Phase.ROLLED_BACK,
        Recalled: Phase.ROLLED_BACK,
    },
    Phase.COMMITTED: {Done: Phase.REPORTED},
    Phase.QUARANTINED: {Done: Phase.ROLLED_BACK},
    Phase.ROLLED_BACK: {Done: Phase.REPORTED},
    Phase.REPORTED: {Done: Phase.IDLE},
    Phase.PAUSED: {Resumed: Phase.CHECKED, Withdrawn: Phase.CANCELLED},
    Phase.CANCELLED: {Done: Phase.IDLE},
}
"""The whole protocol on one screen. `Woke` is accepted everywhere and changes no phase by itself.

A resumed update starts from CHECKED: what it had done is found again by digest.
"""


def step(state: State, event: Event) -> State:
    """Return the state that follows `event`.

    Args:
        state: The state as last stored.
        event: What happened.

    Raises:
        IllegalEventError: The phase does not accept the event; `state` stands.
    """
    if isinstance(event, Woke):
        return _woke(state, event.received)
    target = TRANSITIONS[state.phase].get(type(event))
    if target is None:
        raise IllegalEventError(f"{type(event).__name__} in phase {state.phase}")
    if target is Phase.IDLE:
        return State(attempt=state.attempt)
    return _moved(state, target, event)


def _moved(
    state: State, target: Phase, event: Outside | Done | Switched | Abandoned | Failed
) -> State:
    moved = replace(state, phase=target, wakes=0)
    match event:
        case Offered(release, rollout):
            return State(target, release, rollout, state.attempt + 1)
        case Recalled(release, rollout):
            reason = f"ordered back by rollout {rollout}"
            begun = State(target, release, rollout, state.attempt + 1)
            return replace(begun, outcome=Outcome.ROLLED_BACK, reason=reason)
        case Failed(outcome, reason):
            return replace(moved, outcome=outcome, reason=reason[:MAX_REASON])
        case Switched(at):
            return replace(moved, since=at)
        case Abandoned(reason):
            return replace(moved, outcome=Outcome.FAILED, reason=reason[:MAX_REASON])
        case Done() if state.phase is Phase.COMMITTED:
            return replace(moved, outcome=Outcome.COMMITTED)
        case Done() | Paused() | Resumed() | Withdrawn():
            return moved
        case _:
            assert_never(event)


_SIMPLE: Final[Mapping[Phase, Callable[[Release], Effect]]] = {
    Phase.CHECKED: Qualify,
    Phase.FETCHING: Fetch,
    Phase.FETCHED: Verify,
    Phase.VERIFIED: Stage,
    Phase.TRIAL: Try,
    Phase.PASSED: Switch,
    Phase.COMMITTED: Commit,
    Phase.ROLLED_BACK: RollBack,
    Phase.CANCELLED: Discard,
}
"""The effects that need to know nothing but the release."""


def owed(state: State) -> Effect | None:
    """Return the one effect that `state` still owes; None when there is nothing to do."""
    release = state.release
    if release is None or state.phase is Phase.PAUSED:
        return None
    effect = _SIMPLE.get(state.phase)
    if effect is not None:
        return effect(release)
    match state.phase:
        case Phase.STAGED:
            return Confirm(release, state.rollout)
        case Phase.PROBATION:
            assert state.since is not None  # noqa: S101  the one way here sets it
            return Watch(release, state.attempt, state.since)
        case Phase.QUARANTINED:
            return Quarantine(release, state.reason)
        case _:
            assert state.outcome is not None  # noqa: S101  every way to REPORTED sets it
            return Report(release, state.rollout, state.attempt, state.outcome, state.reason)


_PATIENCE: Final[Mapping[Phase, tuple[int, str]]] = {
    Phase.TRIAL: (MAX_TRIAL_WAKES, "the trial took the agent down"),
    Phase.PROBATION: (MAX_PROBATION_WAKES, "the agent went down on probation"),
}
"""Where the release itself may be what ends the agent: restarts tolerated, and how it is told."""


def _woke(state: State, received: int) -> State:
    """Count the restart; past the limit, take the failure path where the phase has one.

    Progress is what tells a device that is switched off every night from one in a reboot loop.
    """
    if state.phase is Phase.IDLE:
        return state
    limit, what = _PATIENCE.get(state.phase, (MAX_WAKES, f"restarts in phase {state.phase}"))
    runs = state.phase in _PATIENCE  # it receives nothing there: no start is progress
    wakes = 1 if received > state.received and not runs else state.wakes + 1
    woken = replace(state, wakes=wakes, received=max(received, state.received))
    if wakes <= limit or Failed not in TRANSITIONS[state.phase]:
        return woken
    outcome = Outcome.ROLLED_BACK if runs else Outcome.FAILED
    return step(woken, Failed(outcome, f"{what}, {wakes} times without progress"))


def _manifest(text: str) -> Release | None:
    return Release.from_bytes(text.encode()) if text else None

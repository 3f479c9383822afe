"""A release's life on a device, with no I/O in it.

Every phase owes the world exactly one effect, so the stored state alone says what to do next:

    state = step(state, event)    # what happened  -> where we are
    effect = owed(state)          # where we are   -> what to do

The caller (`ota.device.shell`) stores each state before it runs the effect that state owes: a
power cut can repeat an effect, never skip one, so effects are idempotent.

    IDLE -> CHECKED -> FETCHING -> FETCHED -> VERIFIED -> STAGED -> TRIAL -> COMMITTED -> IDLE
    any failure before the switch, and every order to go back, ends in ROLLED_BACK -> IDLE

Until TRIAL nothing that runs is touched: what can fail, fails in a slot that nobody uses.

Example:
    >>> state = step(State(), Offered("r1", "models/auto/d.c/2.json", "ab" * 32, order=2))
    >>> type(owed(state)).__name__
    'Preflight'
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from typing import Any, Final, Self, assert_never

from wildflower.ota import canonical
from wildflower.ota.device.report import MAX_REASON, Outcome
from wildflower.ota.errors import FormatError, IllegalEventError

KIND: Final = "wildflower.device-state"
MAX_WAKES: Final = 5
"""Reboots and crashes tolerated during one update before it is given up."""


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
    COMMITTED = "committed"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class State:
    """What survives a reboot.

    Attributes:
        phase: The current phase.
        attempt: Counts the updates this device began; the key of the report it will owe.
        rollout: Id of the rollout that offered the release.
        path: TUF target path of the release's manifest.
        release: Digest of that manifest.
        order: The release's order.
        wakes: Reboots and crashes since it was offered.
        outcome: How it ended; None while it has not.
        reason: Why it failed; "" while it has not.
    """

    phase: Phase = Phase.IDLE
    attempt: int = 0
    rollout: str = ""
    path: str = ""
    release: str = ""
    order: int = 0
    wakes: int = 0
    outcome: Outcome | None = None
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is stored."""
        body: dict[str, Any] = {name: getattr(self, name) for name in State.__slots__}
        body |= {"phase": self.phase.value, "outcome": self.outcome and self.outcome.value}
        return canonical.to_bytes({"kind": KIND, "format": 1} | body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            FormatError: Not a stored state.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            return cls(
                phase=Phase(document["phase"]),
                attempt=int(document["attempt"]),
                rollout=str(document["rollout"]),
                path=str(document["path"]),
                release=str(document["release"]),
                order=int(document["order"]),
                wakes=int(document["wakes"]),
                outcome=Outcome(document["outcome"]) if document["outcome"] else None,
                reason=str(document["reason"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"device state: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Offered:
    """A rollout that admits this device offers a release that it may install."""

    rollout: str
    path: str
    release: str
    order: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """A rollout orders this device back to what it ran before."""

    rollout: str
    path: str
    release: str
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The owed effect succeeded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The owed effect cannot succeed; `outcome` and `reason` are what the server is told."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The device came back from a reboot or a crash."""


Event = Offered | Ordered | Done | Failed | Woke


@dataclass(frozen=True, slots=True)
class Preflight:
    """Check what the release requires against what this device has, before a byte is fetched."""

    path: str
    release: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the release's files, going on where an earlier try ended."""

    release: str


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare each file with the digest and the length that are signed."""

    release: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Put the files into a slot of their own, complete and durable."""

    release: str


@dataclass(frozen=True, slots=True)
class Try:
    """Run the release's golden inputs in a child process."""

    release: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Make the slot the one that runs; keep the one before."""

    release: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """Make sure that the release does not run; `quarantine` says whether it ever may again."""

    release: str
    quarantine: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Queue what became of the release; `attempt` is the report's key."""

    attempt: int
    rollout: str
    release: str
    outcome: Outcome
    reason: str


Effect = Preflight | Fetch | Verify | Stage | Try | Commit | RollBack | Report

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], Phase]]] = {
    Phase.IDLE: {Offered: Phase.CHECKED, Ordered: Phase.ROLLING_BACK},
    Phase.CHECKED: {Done: Phase.FETCHING, Failed: Phase.ROLLED_BACK},
    Phase.FETCHING: {Done: Phase.FETCHED, Failed: Phase.ROLLED_BACK},
    Phase.FETCHED: {Done: Phase.VERIFIED, Failed: Phase.ROLLED_BACK},
    Phase.VERIFIED: {Done: Phase.STAGED, Failed: Phase.ROLLED_BACK},
    Phase.STAGED: {Done: Phase.TRIAL, Failed: Phase.ROLLING_BACK},
    Phase.TRIAL: {Done: Phase.COMMITTED, Failed: Phase.ROLLING_BACK},
    Phase.COMMITTED: {Done: Phase.IDLE},
    Phase.ROLLING_BACK: {Done: Phase.ROLLED_BACK},
    Phase.ROLLED_BACK: {Done: Phase.IDLE},
}
"""The whole protocol on one screen. `Woke` is accepted everywhere and counts against loops."""


def step(state: State, event: Event) -> State:
    """Return the state that follows `event`.

    Raises:
        IllegalEventError: The phase does not accept the event; `state` stands.
    """
    if isinstance(event, Woke):
        return _woke(state)
    target = TRANSITIONS[state.phase].get(type(event))
    if target is None:
        raise IllegalEventError(f"{type(event).__name__} in phase {state.phase}")
    if target is Phase.IDLE:
        return State(attempt=state.attempt)
    match event:
        case Offered(rollout, path, release, order):
            return State(target, state.attempt + 1, rollout, path, release, order)
        case Ordered(rollout, path, release, reason):
            begun = State(target, state.attempt + 1, rollout, path, release)
            return replace(begun, outcome=Outcome.ROLLED_BACK, reason=reason[:MAX_REASON])
        case Done() if target is Phase.COMMITTED:
            return replace(state, phase=target, outcome=Outcome.COMMITTED)
        case Done():
            return replace(state, phase=target)
        case Failed(outcome, reason):
            return replace(state, phase=target, outcome=outcome, reason=reason[:MAX_REASON])
        case _:
            assert_never(event)


def owed(state: State) -> Effect | None:
    """Return the one effect that `state` still owes; None when there is nothing to do."""
    effect: Effect | None
    match state.phase:
        case Phase.IDLE:
            effect = None
        case Phase.CHECKED:
            effect = Preflight(state.path, state.release)
        case Phase.FETCHING:
            effect = Fetch(state.release)
        case Phase.FETCHED:
            effect = Verify(state.release)
        case Phase.VERIFIED:
            effect = Stage(state.release)
        case Phase.STAGED:
            effect = Try(state.release)
        case Phase.TRIAL:
            effect = Commit(state.release)
        case Phase.ROLLING_BACK:
            effect = RollBack(state.release, quarantine=state.order > 0)
        case Phase.COMMITTED | Phase.ROLLED_BACK:
            ended = state.outcome or Outcome.FAILED
            effect = Report(state.attempt, state.rollout, state.release, ended, state.reason)
        case _:
            assert_never(state.phase)
    return effect


def _woke(state: State) -> State:
    """Count the wake; past MAX_WAKES, take the failure path where the phase has one."""
    if state.phase is Phase.IDLE:
        return state
    woken = replace(state, wakes=state.wakes + 1)
    if woken.wakes > MAX_WAKES and Failed in TRANSITIONS[woken.phase]:
        return step(woken, Failed(Outcome.FAILED, f"{woken.wakes} restarts in {woken.phase}"))
    return woken

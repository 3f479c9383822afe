"""A rollout's lifecycle, with no I/O in it: one release per target group, stage by stage.

    WAITING_APPROVAL -> DRAWING -> WIDENING -> RUNNING -> SOAKING -> WIDENING ... -> DONE
                                      |  any of these three  |
                          PAUSING -> PAUSED        ROLLING_BACK | ABORTING -> ABORTED

The stored state owes one effect (`owed`), the shell stores first and acts second, and each effect
may be repeated: to publish a stage twice writes the same orders twice. Salts are drawn once, from
entropy that arrives in an event, and are part of the state: which devices come first is decided
before anything is published, and every group with a device has a canary in the first stage.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

from wildflower.ota.errors import RolloutError
from wildflower.ota.rollout.admission import draw_salt, is_admitted
from wildflower.ota.rollout.document import Order, RolloutDocument
from wildflower.ota.rollout.policy import OnHalt, Plan, Tally, Verdict, verdict, why_halted
from wildflower.ota.rollout.state import Group, Phase, State

MAX_WAKES: Final = 10
"""Restarts tolerated while one publication is owed; then the rollout pauses for a human."""
ENTROPY: Final = 32  # bytes


@dataclass(frozen=True, slots=True)
class Approved:
    """Someone who may has approved the rollout."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Fresh entropy and the members of each target group, from which salts are drawn.

    Attributes:
        entropy: 32 random bytes.
        members: Ids of the devices of each target group; a missing group has none.
    """

    entropy: bytes = field(repr=False)
    members: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Published:
    """What the state says is published in every group."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Reports as they stand at `now`, the latest outcome of each device, by target group."""

    tallies: Mapping[str, Tally]
    now: datetime


@dataclass(frozen=True, slots=True)
class Paused:
    """An operator stops the spread; devices keep what they have."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """An operator lets a paused rollout go on with the stage it was in."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """An operator ends the rollout; devices that hold the release go back if `roll_back`."""

    reason: str
    roll_back: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The stage cannot be published."""

    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The server came back from a restart or a crash."""


Event = Approved | Drawn | Published | Counted | Paused | Resumed | Aborted | Failed | Woke


@dataclass(frozen=True, slots=True)
class Draw:
    """Answer with `Drawn`."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish `documents(state, now)`, then answer with `Published`."""

    order: Order


@dataclass(frozen=True, slots=True)
class Await:
    """Answer with `Counted` at once, and whenever a report of this rollout has come in."""

    stage: int


@dataclass(frozen=True, slots=True)
class Soak:
    """Answer with `Counted` whenever a report has come in, and once `until` has passed."""

    stage: int
    until: datetime


Effect = Draw | Publish | Await | Soak

_WITHDRAWN: Final = (Phase.ROLLING_BACK, Phase.ABORTING)
_HALTED: Final = (Phase.ROLLING_BACK, Phase.PAUSING)

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], tuple[Phase, ...]]]] = {
    Phase.WAITING_APPROVAL: {Approved: (Phase.DRAWING,), Aborted: (Phase.ABORTED,)},
    Phase.DRAWING: {Drawn: (Phase.WIDENING,), Aborted: (Phase.ABORTED,)},
    Phase.WIDENING: {
        Published: (Phase.RUNNING,),
        Failed: (Phase.PAUSED,),
        Paused: (Phase.PAUSING,),
        Aborted: _WITHDRAWN,
    },
    Phase.RUNNING: {
        Counted: (Phase.RUNNING, Phase.SOAKING, *_HALTED),
        Paused: (Phase.PAUSING,),
        Aborted: _WITHDRAWN,
    },
    Phase.SOAKING: {
        Counted: (Phase.SOAKING, Phase.WIDENING, Phase.DONE, *_HALTED),
        Paused: (Phase.PAUSING,),
        Aborted: _WITHDRAWN,
    },
    Phase.PAUSING: {Published: (Phase.PAUSED,), Aborted: _WITHDRAWN},
    Phase.PAUSED: {Resumed: (Phase.WIDENING,), Aborted: _WITHDRAWN},
    Phase.ROLLING_BACK: {Published: (Phase.ABORTED,)},
    Phase.ABORTING: {Published: (Phase.ABORTED,)},
    Phase.ABORTED: {},
    Phase.DONE: {Aborted: _WITHDRAWN},
}
"""The phases an event may lead to. `Woke` is accepted everywhere; see `_woke`."""


def begin(rollout: str, plan: Plan, groups: tuple[Group, ...]) -> State:
    """Return the first state of a rollout.

    Raises:
        RolloutError: The plan is out of range, there is no group, or one is named twice.
    """
    plan.check()
    names = [group.target_group for group in groups]
    if not names or len(set(names)) != len(names):
        raise RolloutError(f"target groups {names}: at least one, and each once")
    return State(
        rollout, plan, groups, Phase.WAITING_APPROVAL if plan.needs_approval else Phase.DRAWING
    )


def step(state: State, event: Event) -> State:
    """Return the state that follows `event`.

    Raises:
        RolloutError: The phase does not accept the event; `state` stands.
    """
    if isinstance(event, Woke):
        return _woke(state)
    targets = TRANSITIONS[state.phase].get(type(event))
    if targets is None:
        raise RolloutError(
            f"rollout {state.rollout} is {state.phase} and takes no {type(event).__name__}"
        )
    match event:
        case Drawn(entropy, members):
            drawn = tuple(_drawn(group, state.plan, entropy, members) for group in state.groups)
            return _enter(replace(state, groups=drawn), targets[0])
        case Counted(tallies, now):
            return _judged(state, tallies, now)
        case Aborted(reason, roll_back):
            phase = targets[0] if roll_back else targets[-1]
            return _enter(state, phase, reason=reason)
        case Paused(reason) | Failed(reason):
            return _enter(state, targets[0], reason=reason)
        case Resumed():
            return _enter(state, targets[0], reason="")
        case Approved() | Published():
            return _enter(state, targets[0])
        case _:
            assert_never(event)


def owed(state: State) -> Effect | None:
    """Return the one effect that `state` still owes; None while it waits for an operator."""
    match state.phase:
        case Phase.DRAWING:
            return Draw()
        case Phase.WIDENING:
            return Publish(Order.INSTALL)
        case Phase.PAUSING | Phase.ABORTING:
            return Publish(Order.PAUSE)
        case Phase.ROLLING_BACK:
            return Publish(Order.ROLL_BACK)
        case Phase.RUNNING:
            return Await(state.stage)
        case Phase.SOAKING:
            return Soak(state.stage, _soak_end(state))
        case Phase.WAITING_APPROVAL | Phase.PAUSED | Phase.ABORTED | Phase.DONE:
            return None
        case _:
            assert_never(state.phase)


def documents(state: State, now: datetime) -> tuple[RolloutDocument, ...]:
    """Return what devices are told in this state, one document per target group.

    Args:
        state: A state that owes `Publish`.
        now: From when on devices act on it.

    Raises:
        RolloutError: The state has nothing to publish.
    """
    effect = owed(state)
    if not isinstance(effect, Publish):
        raise RolloutError(f"rollout {state.rollout} is {state.phase}: nothing is to be published")
    return tuple(
        RolloutDocument(
            rollout=state.rollout,
            target_group=group.target_group,
            order=effect.order,
            release_path=group.release_path,
            release=group.release,
            salt=group.salt,
            permille=state.demands.permille,
            not_before=now,
            window_s=state.plan.window_s if effect.order is Order.INSTALL else 0,
        )
        for group in state.groups
    )


def _enter(state: State, phase: Phase, **changes: Any) -> State:
    """Change the phase; restarts are counted anew, and a soak that was left is over."""
    return replace(state, phase=phase, wakes=0, **({"soak_until": None} | changes))


def _judged(state: State, tallies: Mapping[str, Tally], now: datetime) -> State:
    """Follow the verdict. A stage that soaks has had its reports; it can only halt or end."""
    found = verdict(state.demands, state.reach, tallies)
    if found is Verdict.HALT:
        back = state.plan.on_halt is OnHalt.ROLL_BACK
        phase = Phase.ROLLING_BACK if back else Phase.PAUSING
        return _enter(state, phase, reason=why_halted(state.demands, tallies))
    if found is Verdict.WAIT and state.phase is Phase.RUNNING:
        return state
    return _advanced(state, now)


def _advanced(state: State, now: datetime) -> State:
    if state.phase is Phase.RUNNING:
        until = now + timedelta(seconds=state.demands.soak_s)
        return _enter(state, Phase.SOAKING, soak_until=until)
    if now < _soak_end(state):
        return state
    if state.stage + 1 == len(state.plan.stages):
        return _enter(state, Phase.DONE)
    return _enter(state, Phase.WIDENING, stage=state.stage + 1)


def _soak_end(state: State) -> datetime:
    assert state.soak_until is not None, "SOAKING has an end: `_advanced` sets it"  # noqa: S101
    return state.soak_until


def _drawn(
    group: Group, plan: Plan, entropy: bytes, members: Mapping[str, tuple[str, ...]]
) -> Group:
    """Give a group its salt: each group its own, so that one device's place tells no other's."""
    if len(entropy) != ENTROPY:
        raise ValueError(f"{len(entropy)} bytes of entropy, {ENTROPY} are needed")
    devices = members.get(group.target_group, ())
    own = hashlib.sha256(entropy + group.target_group.encode()).digest()
    salt = draw_salt(devices, plan.stages[0].permille, own)
    reach = tuple(
        sum(is_admitted(salt, device, stage.permille) for device in devices)
        for stage in plan.stages
    )
    return replace(group, salt=salt.hex(), reach=reach)


def _woke(state: State) -> State:
    """Count the restart where work is owed; past MAX_WAKES, pause what cannot be published.

    Waiting phases count nothing (a long rollout outlives many restarts), and what withdraws a
    release is tried for ever.
    """
    if not isinstance(owed(state), Draw | Publish):
        return state
    woken = replace(state, wakes=state.wakes + 1)
    if woken.wakes > MAX_WAKES and Failed in TRANSITIONS[woken.phase]:
        return step(woken, Failed(f"{woken.wakes} restarts before stage {woken.stage + 1} was out"))
    return woken

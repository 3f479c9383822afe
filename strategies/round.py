"""A round's lifecycle, with no I/O in it.

    PLANNED -> SAMPLING -> TRAINING(stage) -> AGGREGATED -> EVALUATED -> RECORDED | ABORTED(reason)

Every state owes the world exactly one effect, so the stored state alone says what to do next:

    state = step(state, event)    # what happened  -> where we are
    effect = owed(state)          # where we are   -> what to do

The shell stores each state before it runs the effect that state owes, so a crash can only repeat an
effect, never skip one; effects must be idempotent. What a round cannot repeat bit for bit (masks,
noise) lies before AGGREGATED: from there on the state names the stored aggregate by its digest, and
a resumed round goes on from that. A round that was cut off while it trained begins again at
SAMPLING with the cohort it had drawn, because who is connected has changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum, unique
from typing import Any, Final, assert_never

from wildflower.strategies.errors import IllegalEventError, StoredStateError

MAX_WAKES: Final = 5
"""Crashes tolerated in one round before it is given up."""

KIND: Final = "wildflower.round"
FORMAT: Final = 1


@unique
class Phase(StrEnum):
    """Where in its lifecycle a round is."""

    PLANNED = "planned"
    SAMPLING = "sampling"
    TRAINING = "training"
    AGGREGATED = "aggregated"
    EVALUATED = "evaluated"
    RECORDED = "recorded"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Round:
    """What is stored of a round.

    Attributes:
        training: Id of the training it belongs to.
        number: Its number in the training, from 1.
        quorum: Fewest devices with which it goes on.
        secure: True if updates are aggregated securely.
        phase: The current phase.
        stage: What the training is at, for who watches; "" otherwise.
        cohort: Device ids drawn, sorted.
        connected: Those of them that came, sorted.
        survivors: Those of them whose updates are in the aggregate, sorted.
        aggregate: Digest of the stored aggregate; "" before there is one.
        model: Digest of the new global model; "" before there is one.
        metrics: Named figures of the round.
        reason: Why it was aborted; "" otherwise.
        wakes: Crashes since it was planned.
    """

    training: str
    number: int
    quorum: int
    secure: bool
    phase: Phase = Phase.PLANNED
    stage: str = ""
    cohort: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    aggregate: str = ""
    model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    wakes: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """The cohort was drawn from the eligible population."""

    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """All of the cohort are connected, or the deadline to be is over."""

    connected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reached:
    """The training is at another stage."""

    stage: str


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The updates of the survivors are added up, and the aggregate is stored under its digest.

    Attributes:
        survivors: Device ids whose updates are in it.
        aggregate: Its digest.
        metrics: What the cohort's statistics say, of the model the round started from.
    """

    survivors: tuple[str, ...]
    aggregate: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Applied:
    """The new global model is stored under its digest."""

    model: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The evaluation is done, or left to the next round, or it failed, which undoes no model.

    Attributes:
        metrics: Its figures, added to the round's; none is a legal answer.
    """

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The round's record is written."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The owed effect cannot succeed; `reason` is a sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The server came back from a crash or a restart."""


Event = Drawn | Gathered | Reached | Aggregated | Applied | Evaluated | Recorded | Failed | Woke


@dataclass(frozen=True, slots=True)
class DrawCohort:
    """Draw the cohort from the eligible population, at least `quorum` of them."""

    training: str
    number: int
    quorum: int


@dataclass(frozen=True, slots=True)
class Invite:
    """Invite the cohort and wait until it is connected, or the deadline is over."""

    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Have the connected devices train, add up their updates, store the aggregate."""

    connected: tuple[str, ...]
    secure: bool
    quorum: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Turn the stored aggregate into the next global model and store it."""

    aggregate: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Have the new model evaluated where nothing later will."""

    model: str


@dataclass(frozen=True, slots=True)
class Record:
    """Write the round's record."""

    model: str


Effect = DrawCohort | Invite | Train | Apply | Evaluate | Record

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], Phase]]] = {
    Phase.PLANNED: {Drawn: Phase.SAMPLING, Failed: Phase.ABORTED},
    Phase.SAMPLING: {Gathered: Phase.TRAINING, Failed: Phase.ABORTED},
    Phase.TRAINING: {
        Reached: Phase.TRAINING,
        Aggregated: Phase.AGGREGATED,
        Failed: Phase.ABORTED,
    },
    Phase.AGGREGATED: {
        Applied: Phase.AGGREGATED,
        Evaluated: Phase.EVALUATED,
        Failed: Phase.ABORTED,
    },
    Phase.EVALUATED: {Recorded: Phase.RECORDED, Failed: Phase.ABORTED},
    Phase.RECORDED: {},
    Phase.ABORTED: {},
}
"""The whole lifecycle on one screen. It does not show that fewer devices than the quorum lead to
ABORTED, and that `Woke` is accepted everywhere: it counts, and leads from TRAINING to SAMPLING."""


def step(state: Round, event: Event) -> Round:
    """Return the state that follows `event`.

    Args:
        state: The state as last stored.
        event: What happened.

    Raises:
        IllegalEventError: The phase does not accept the event; `state` stands.
    """
    if isinstance(event, Woke):
        return _woke(state)
    target = TRANSITIONS[state.phase].get(type(event))
    if target is None or not _is_in_order(state, event):
        raise IllegalEventError(
            f"{type(event).__name__} in round {state.number} of {state.training}, {state.phase}"
        )
    return _held_to_quorum(replace(state, phase=target, **_changes(state, event)), event)


def owed(state: Round) -> Effect | None:
    """Return the one effect that `state` still owes; None when the round is over."""
    match state.phase:
        case Phase.PLANNED:
            return DrawCohort(state.training, state.number, state.quorum)
        case Phase.SAMPLING:
            return Invite(state.cohort)
        case Phase.TRAINING:
            return Train(state.connected, state.secure, state.quorum)
        case Phase.AGGREGATED:
            return Evaluate(state.model) if state.model else Apply(state.aggregate)
        case Phase.EVALUATED:
            return Record(state.model)
        case Phase.RECORDED | Phase.ABORTED:
            return None
        case _:
            assert_never(state.phase)


def _is_in_order(state: Round, event: Event) -> bool:
    """Within AGGREGATED the model comes first, once, and its evaluation second."""
    match event:
        case Applied():
            return not state.model
        case Evaluated():
            return bool(state.model)
        case _:
            return True


def _changes(state: Round, event: Event) -> dict[str, Any]:
    """Return the fields that `event` changes, besides the phase."""
    match event:
        case Drawn(cohort):
            return {"cohort": _ids(cohort)}
        case Gathered(connected):
            return {"connected": _ids(connected)}
        case Reached(stage):
            return {"stage": stage}
        case Aggregated(survivors, aggregate, metrics):
            figures = {**state.metrics, **metrics}
            known = {"survivors": _ids(survivors), "aggregate": aggregate}
            return {"stage": "", "metrics": figures, **known}
        case Applied(model):
            return {"model": model}
        case Evaluated(metrics):
            return {"metrics": {**state.metrics, **metrics}}
        case Failed(reason):
            return {"stage": "", "reason": reason}
        case Recorded() | Woke():
            return {}
        case _:
            assert_never(event)


def _held_to_quorum(state: Round, event: Event) -> Round:
    """Abort the round where fewer devices than the quorum are left."""
    match event:
        case Drawn():
            found, did = len(state.cohort), "could be drawn"
        case Gathered():
            found, did = len(state.connected), f"of {len(state.cohort)} were connected in time"
        case Aggregated():
            found, did = len(state.survivors), f"of {len(state.connected)} sent their update"
        case _:
            return state
    if found >= state.quorum:
        return state
    reason = f"Only {found} devices {did}; the quorum is {state.quorum}."
    return replace(state, phase=Phase.ABORTED, stage="", aggregate="", reason=reason)


def _woke(state: Round) -> Round:
    """Count the crash; past MAX_WAKES, give the round up."""
    if state.phase in {Phase.RECORDED, Phase.ABORTED}:
        return state
    woken = replace(state, wakes=state.wakes + 1)
    if woken.wakes > MAX_WAKES:
        reason = f"The server stopped {woken.wakes} times during this round."
        return replace(woken, phase=Phase.ABORTED, stage="", reason=reason)
    if woken.phase is Phase.TRAINING:
        return replace(woken, phase=Phase.SAMPLING, stage="", connected=())
    return woken


def _ids(devices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(devices)))


def to_bytes(state: Round) -> bytes:
    """Return the canonical stored form; `from_bytes(to_bytes(s)) == s`, equal states equal bytes.

    Raises:
        ValueError: A metric is no finite number.
    """
    document = {"kind": KIND, "format": FORMAT}
    document |= {each.name: getattr(state, each.name) for each in fields(state)}
    document["metrics"] = {name: float(value) for name, value in state.metrics.items()}
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    ).encode()


_TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(("training", "phase", "stage", "aggregate", "model", "reason"), str),
    **dict.fromkeys(("number", "quorum", "wakes"), int),
    **dict.fromkeys(("cohort", "connected", "survivors"), list),
    **{"secure": bool, "metrics": dict, "kind": str, "format": int},
}


def from_bytes(data: bytes) -> Round:
    """Return the state that `to_bytes` stored.

    Raises:
        StoredStateError: Not the stored state of a round.
    """
    try:
        found: Any = json.loads(data)
        if {name: type(value) for name, value in found.items()} != _TYPES:
            raise ValueError(f"names or types of {sorted(found)} are wrong")
        if (found.pop("kind"), found.pop("format")) != (KIND, FORMAT):
            raise ValueError(f"not a {KIND} of format {FORMAT}")
        for name in ("cohort", "connected", "survivors"):
            if not all(type(device) is str for device in found[name]):
                raise ValueError(f"{name} are not ids")
            found[name] = tuple(found[name])
        state = Round(**{**found, "phase": Phase(found["phase"])})
        if to_bytes(state) != data:
            raise ValueError("not in canonical form")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StoredStateError(f"not the stored state of a round: {error}") from error
    return state

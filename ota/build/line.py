"""The release line: how a model becomes published releases, with no I/O in it.

Two things live here. A *stage* of the build is a pure function of its input digests and
parameters, so `key` names its outputs before they are made and a cache can answer for it:

    key(stage, inputs, toolchain) == key(stage, inputs, toolchain)    in any process, any year

And the *line* of one model, a machine in which every phase owes one effect:

    MODEL --Built--> BUILT --Passed--> GATED --Signed--> SIGNED --Published--> PUBLISHED
      any of the first four --Failed--> FAILED(reason)      MODEL --Superseded--> FAILED

The shell (`server.line`) stores each state before it runs what the state owes; effects are
idempotent, because builds are cached and releases are named by digest.

    State.from_bytes(state.to_bytes()) == state

Example:
    >>> state = State("digits", "ab" * 32, order=1)
    >>> type(owed(state)).__name__
    'Build'
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from typing import Any, Final, Self, assert_never

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, IllegalEventError

KIND: Final = "wildflower.release-line"
MAX_WAKES: Final = 5
"""Restarts tolerated in one phase before the line is given up: a build that kills its server."""

MAX_REASON: Final = 2000  # characters; a reason is a sentence, not a log file

Parameter = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a build.

    Attributes:
        name: What it does, such as "quantise".
        version: Raised whenever the same inputs and parameters would give other bytes.
        parameters: What it is told besides its inputs.
    """

    name: str
    version: int
    parameters: Mapping[str, Parameter]


def key(stage: Stage, inputs: Mapping[str, str], toolchain: str) -> str:
    """Return the digest that names the outputs of a stage.

    Args:
        stage: The stage.
        inputs: Digest of each input, by what the stage calls it.
        toolchain: Digest of the versions of everything that turns inputs into outputs.
    """
    return canonical.digest(
        canonical.to_bytes(
            {
                "kind": "wildflower.build-key",
                "format": 1,
                "stage": stage.name,
                "version": stage.version,
                "parameters": dict(stage.parameters),
                "inputs": dict(inputs),
                "toolchain": toolchain,
            }
        )
    )


@unique
class Phase(StrEnum):
    """How far a model has come."""

    MODEL = "model"
    BUILT = "built"
    GATED = "gated"
    SIGNED = "signed"
    PUBLISHED = "published"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact on its way out.

    Attributes:
        device_class: The class it was built for.
        artifact: Digest of its file.
        gate_report: Digest of the report of its gates.
    """

    device_class: str
    artifact: str
    gate_report: str


@dataclass(frozen=True, slots=True)
class State:
    """What is stored of one model's line.

    Attributes:
        name: The model's name, such as "digits"; models of one name supersede each other.
        model: Digest of the global model.
        order: Position among the models of that name, from 1; a newer model has a higher one.
        phase: How far it has come.
        artifacts: What was built, one per device class.
        releases: Digests of the signed manifests.
        reason: Why it failed; empty while it has not.
        wakes: Restarts since the phase began.
    """

    name: str
    model: str
    order: int
    phase: Phase = Phase.MODEL
    artifacts: tuple[Candidate, ...] = ()
    releases: tuple[str, ...] = ()
    reason: str = ""
    wakes: int = 0

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is stored."""
        body: dict[str, Any] = {name: getattr(self, name) for name in State.__slots__}
        body |= {"phase": self.phase.value, "releases": list(self.releases)}
        body["artifacts"] = [
            [one.device_class, one.artifact, one.gate_report] for one in self.artifacts
        ]
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
                name=str(document["name"]),
                model=str(document["model"]),
                order=int(document["order"]),
                phase=Phase(document["phase"]),
                artifacts=tuple(
                    Candidate(str(device_class), str(artifact), str(report))
                    for device_class, artifact, report in document["artifacts"]
                ),
                releases=tuple(str(digest) for digest in document["releases"]),
                reason=str(document["reason"]),
                wakes=int(document["wakes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"release line: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Built:
    """Every device class has its artifact, gates measured."""

    artifacts: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """Every gate report was read and passed."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The release signer signed a manifest for every artifact."""

    releases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """The repository serves the releases."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The owed effect cannot succeed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer model of the same name came while this one was waiting."""

    by: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The server came back from a restart or a crash."""


Event = Built | Passed | Signed | Published | Failed | Superseded | Woke


@dataclass(frozen=True, slots=True)
class Build:
    """Build an artifact for each device class, and measure its gates."""

    model: str


@dataclass(frozen=True, slots=True)
class Gate:
    """Read the gate reports and judge whether every one of them passed."""

    artifacts: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Sign:
    """Have a manifest for each artifact signed, as number `order` of its target group."""

    artifacts: tuple[Candidate, ...]
    order: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Put the signed releases where devices look."""

    releases: tuple[str, ...]


Effect = Build | Gate | Sign | Publish

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Event], Phase]]] = {
    Phase.MODEL: {Built: Phase.BUILT, Failed: Phase.FAILED, Superseded: Phase.FAILED},
    Phase.BUILT: {Passed: Phase.GATED, Failed: Phase.FAILED},
    Phase.GATED: {Signed: Phase.SIGNED, Failed: Phase.FAILED},
    Phase.SIGNED: {Published: Phase.PUBLISHED, Failed: Phase.FAILED},
    Phase.PUBLISHED: {},
    Phase.FAILED: {},
}
"""The whole line on one screen. `Woke` is accepted everywhere."""


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
    moved = replace(state, phase=target, wakes=0)
    match event:
        case Built(artifacts):
            return replace(moved, artifacts=artifacts)
        case Signed(releases):
            return replace(moved, releases=releases)
        case Failed(reason):
            return replace(moved, reason=reason[:MAX_REASON])
        case Superseded(by):
            return replace(moved, reason=f"superseded by model {by}")
        case Passed() | Published():
            return moved
        case _:
            assert_never(event)


def owed(state: State) -> Effect | None:
    """Return the one effect that `state` still owes; None when the line has ended."""
    match state.phase:
        case Phase.MODEL:
            return Build(state.model)
        case Phase.BUILT:
            return Gate(state.artifacts)
        case Phase.GATED:
            return Sign(state.artifacts, state.order)
        case Phase.SIGNED:
            return Publish(state.releases)
        case Phase.PUBLISHED | Phase.FAILED:
            return None
        case _:
            assert_never(state.phase)


def is_candidate(evaluation: float | None, incumbent: float | None, *, slack: float = 0.0) -> bool:
    """Whether the last model of a training should be built: its evaluation is not worse.

    Args:
        evaluation: The model's accuracy in [0, 1]; None where nobody evaluated it.
        incumbent: Accuracy of the model that was published last; None for no such model.
        slack: How much worse still counts as not worse.
    """
    if incumbent is None:
        return True
    return evaluation is not None and evaluation >= incumbent - slack


def supersedes(newer: State, queued: State) -> bool:
    """Whether `newer` takes the place of `queued`: a later model of the same name."""
    is_waiting = queued.phase is Phase.MODEL and newer.phase is not Phase.FAILED
    return is_waiting and newer.name == queued.name and newer.order > queued.order


def candidates(states: Iterable[State], *, in_flight: Sequence[str] = ()) -> tuple[State, ...]:
    """Return what to work on now, at most one line per name, the oldest name first.

    A line that has begun is finished before another of its name starts; among those that wait,
    the newest wins.

    Args:
        states: Every line of the server, in any order.
        in_flight: Digests of models whose build has been started and has not ended yet.
    """
    chosen: dict[str, State] = {}
    for state in sorted(states, key=lambda one: one.order):
        if owed(state) is None:
            continue
        other = chosen.get(state.name)
        if other is None or not _has_begun(other, in_flight):
            chosen[state.name] = state
    return tuple(chosen.values())


def superseded(
    states: Sequence[State], *, in_flight: Sequence[str] = ()
) -> tuple[tuple[State, Superseded], ...]:
    """Return the waiting lines that a newer model overtook, each with the event that says so."""
    overtaken = []
    for queued in states:
        newer = [one for one in states if supersedes(one, queued)]
        if newer and queued.model not in in_flight:
            newest = max(newer, key=lambda one: one.order)
            overtaken.append((queued, Superseded(newest.model)))
    return tuple(overtaken)


def _has_begun(state: State, in_flight: Sequence[str]) -> bool:
    return state.phase is not Phase.MODEL or state.model in in_flight


def _woke(state: State) -> State:
    """Count the restart; past MAX_WAKES in one phase, give the line up."""
    if owed(state) is None:
        return state
    woken = replace(state, wakes=state.wakes + 1)
    if woken.wakes > MAX_WAKES:
        reason = f"the server restarted {woken.wakes} times in phase {state.phase}"
        return step(woken, Failed(reason))
    return woken

"""What is remembered of a rollout, and its stored form.

from_bytes(to_bytes(state)) == state
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, unique
from typing import Any, Final

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, RolloutError
from wildflower.ota.rollout.policy import OnHalt, Plan, Stage

KIND: Final = "wildflower.rollout-state"


@unique
class Phase(StrEnum):
    """Where in its lifecycle a rollout is."""

    WAITING_APPROVAL = "waiting-approval"
    DRAWING = "drawing"
    WIDENING = "widening"
    RUNNING = "running"
    SOAKING = "soaking"
    PAUSING = "pausing"
    PAUSED = "paused"
    ROLLING_BACK = "rolling-back"
    ABORTING = "aborting"
    ABORTED = "aborted"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Group:
    """One target group and the release it shall get.

    Attributes:
        target_group: The devices.
        release_path: TUF target path of the release's manifest.
        release: Digest of that manifest.
        salt: Hex of the salt; "" before it is drawn.
        reach: Devices that each stage admits, as the group was when the salt was drawn.
    """

    target_group: str
    release_path: str
    release: str
    salt: str = ""
    reach: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """What survives a restart.

    Attributes:
        rollout: Id of the rollout.
        plan: How it spreads.
        groups: Whom it reaches with what; no two of the same target group.
        phase: Where it is.
        stage: Index of the stage it is in, from 0.
        soak_until: When the stage has been watched long enough; None but in SOAKING.
        reason: Why it is paused or aborted, in a sentence.
        wakes: Restarts since the phase began.
    """

    rollout: str
    plan: Plan
    groups: tuple[Group, ...]
    phase: Phase
    stage: int = 0
    soak_until: datetime | None = None
    reason: str = ""
    wakes: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more unless an operator takes a finished rollout back."""
        return self.phase in (Phase.DONE, Phase.ABORTED)

    @property
    def demands(self) -> Stage:
        """The stage it is in."""
        return self.plan.stages[self.stage]

    @property
    def reach(self) -> Mapping[str, int]:
        """Devices of each target group that the current stage admits."""
        return {group.target_group: group.reach[self.stage] for group in self.groups if group.salt}


def to_bytes(state: State) -> bytes:
    """Return the stored form."""
    return canonical.to_bytes(
        {
            "kind": KIND,
            "format": 1,
            "rollout": state.rollout,
            "plan": _fields(state.plan) | {"stages": [_fields(s) for s in state.plan.stages]},
            "groups": [_fields(g) | {"reach": list(g.reach)} for g in state.groups],
            "phase": state.phase,
            "stage": state.stage,
            "soak_until": canonical.to_time(state.soak_until) if state.soak_until else None,
            "reason": state.reason,
            "wakes": state.wakes,
        }
    )


def from_bytes(data: bytes) -> State:
    """Parse the stored form.

    Raises:
        FormatError: Not a rollout's state.
    """
    document = canonical.from_bytes(data, kind=KIND)
    try:
        until = document["soak_until"]
        plan = document["plan"]
        state = State(
            rollout=str(document["rollout"]),
            plan=Plan(
                tuple(Stage(**stage) for stage in plan["stages"]),
                int(plan["window_s"]),
                bool(plan["needs_approval"]),
                OnHalt(plan["on_halt"]),
            ),
            groups=tuple(
                Group(**(group | {"reach": tuple(group["reach"])})) for group in document["groups"]
            ),
            phase=Phase(document["phase"]),
            stage=int(document["stage"]),
            soak_until=None if until is None else canonical.from_time(until),
            reason=str(document["reason"]),
            wakes=int(document["wakes"]),
        )
        _check(state)
        if to_bytes(state) != data:
            raise ValueError("a field is unknown or of another type")
    except (KeyError, TypeError, ValueError, IndexError, RolloutError) as error:
        raise FormatError(f"rollout state: {error!r}") from error
    return state


def _check(state: State) -> None:
    """Check what `begin` and `step` keep true, for a state that comes from a disk."""
    state.plan.check()
    if not 0 <= state.stage < len(state.plan.stages):
        raise ValueError(f"stage {state.stage} of {len(state.plan.stages)}")
    if (state.soak_until is None) is (state.phase is Phase.SOAKING):
        raise ValueError(f"soak_until {state.soak_until} in phase {state.phase}")
    for group in state.groups:
        if group.salt and len(group.reach) != len(state.plan.stages):
            raise ValueError(f"reach of {group.target_group}: {len(group.reach)} stages")


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, RolloutError
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order
from wildflower.ota.rollout.machine import (
    MAX_WAKES,
    TRANSITIONS,
    Aborted,
    Approved,
    Await,
    Counted,
    Draw,
    Drawn,
    Event,
    Failed,
    Paused,
    Publish,
    Published,
    Resumed,
    Soak,
    Woke,
    begin,
    documents,
    owed,
    step,
)
from wildflower.ota.rollout.policy import OnHalt, Plan, Stage, Tally
from wildflower.ota.rollout.state import Group, Phase, State, from_bytes, to_bytes

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MEMBERS = {"d.a": tuple(f"a{n}" for n in range(8)), "d.b": tuple(f"b{n}" for n in range(4))}
GROUPS = tuple(Group(name, f"models/auto/{name}/3.json", name[-1] * 64) for name in MEMBERS)
PLAN = Plan((Stage(250, 2, 0, 60), Stage(1000, 9, 1, 0)), window_s=30)
GOOD = {"d.a": Tally(2), "d.b": Tally(1)}
BAD = {"d.a": Tally(0, 2)}

EVENTS: tuple[Event, ...] = (
    Approved(),
    Drawn(bytes(32), MEMBERS),
    Published(),
    Counted(GOOD, NOW),
    Paused("lunch"),
    Resumed(),
    Aborted("wrong model"),
    Failed("no key"),
)


def run(state: State, *events: Event) -> State:
    for event in events:
        state = step(state, event)
    return state


def drawn(plan: Plan = PLAN) -> State:
    return step(begin("r1", plan, GROUPS), Drawn(bytes(range(32)), MEMBERS))


def in_phase(phase: Phase) -> State:
    """Return a state of a phase, reached by legal events."""
    running = step(drawn(), Published())
    soaking = step(running, Counted(GOOD, NOW))
    reached: dict[Phase, State] = {
        Phase.WAITING_APPROVAL: begin("r1", replace(PLAN, needs_approval=True), GROUPS),
        Phase.DRAWING: begin("r1", PLAN, GROUPS),
        Phase.WIDENING: drawn(),
        Phase.RUNNING: running,
        Phase.SOAKING: soaking,
        Phase.PAUSING: step(running, Paused("lunch")),
        Phase.PAUSED: run(running, Paused("lunch"), Published()),
        Phase.ROLLING_BACK: step(running, Aborted("wrong")),
        Phase.ABORTING: step(running, Aborted("wrong", roll_back=False)),
        Phase.ABORTED: run(running, Aborted("wrong"), Published()),
        Phase.DONE: run(
            soaking,
            Counted(GOOD, NOW + timedelta(seconds=60)),
            Published(),
            Counted({"d.a": Tally(8), "d.b": Tally(4)}, NOW),
            Counted({"d.a": Tally(8), "d.b": Tally(4)}, NOW),
        ),
    }
    return reached[phase]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_phase_takes_exactly_the_events_in_its_table(phase: Phase, event: Event) -> None:
    state = in_phase(phase)
    assert state.phase is phase
    if type(event) in TRANSITIONS[phase]:
        assert step(state, event).phase in TRANSITIONS[phase][type(event)]
    else:
        with pytest.raises(RolloutError, match=phase.value):
            step(state, event)


@pytest.mark.parametrize("phase", Phase)
def test_every_state_comes_back_as_it_was_stored(phase: Phase) -> None:
    assert from_bytes(to_bytes(in_phase(phase))) == in_phase(phase)


OWED = {
    Phase.DRAWING: Draw(),
    Phase.WIDENING: Publish(Order.INSTALL),
    Phase.RUNNING: Await(0),
    Phase.SOAKING: Soak(0, NOW + timedelta(seconds=60)),
    Phase.PAUSING: Publish(Order.PAUSE),
    Phase.ROLLING_BACK: Publish(Order.ROLL_BACK),
    Phase.ABORTING: Publish(Order.PAUSE),
}


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_owes_at_most_one_effect(phase: Phase) -> None:
    assert owed(in_phase(phase)) == OWED.get(phase)


def test_each_group_has_a_canary_of_its_own_and_no_more_than_its_share() -> None:
    state = drawn()
    assert [group.reach[0] for group in state.groups] == [
        sum(is_admitted(bytes.fromhex(g.salt), d, 250) for d in MEMBERS[g.target_group])
        for g in state.groups
    ]
    assert 1 <= state.groups[0].reach[0] <= 2
    assert state.groups[1].reach == (1, 4)
    assert state.groups[0].salt != state.groups[1].salt


def test_documents_tell_each_group_how_far_it_may_go() -> None:
    first, second = documents(drawn(), NOW)
    assert (first.target_group, second.target_group) == ("d.a", "d.b")
    assert (first.permille, first.order, first.window_s) == (250, Order.INSTALL, 30)
    assert first.release_path == "models/auto/d.a/3.json"
    [back, _] = documents(in_phase(Phase.ROLLING_BACK), NOW)
    assert (back.order, back.window_s) == (Order.ROLL_BACK, 0)
    with pytest.raises(RolloutError, match="nothing is to be published"):
        documents(in_phase(Phase.RUNNING), NOW)


def test_a_stage_soaks_before_the_next_one_widens() -> None:
    soaking = in_phase(Phase.SOAKING)
    assert step(soaking, Counted(GOOD, NOW + timedelta(seconds=59))) == soaking
    wider = step(soaking, Counted(GOOD, NOW + timedelta(seconds=60)))
    assert (wider.phase, wider.stage) == (Phase.WIDENING, 1)


def test_a_stage_waits_for_its_reports() -> None:
    running = in_phase(Phase.RUNNING)
    assert step(running, Counted({"d.a": Tally(1)}, NOW)) == running


@pytest.mark.parametrize(
    ("on_halt", "phase"),
    [(OnHalt.ROLL_BACK, Phase.ROLLING_BACK), (OnHalt.PAUSE, Phase.PAUSING)],
)
def test_one_failure_too_many_stops_the_spread(on_halt: OnHalt, phase: Phase) -> None:
    state = step(drawn(replace(PLAN, on_halt=on_halt)), Published())
    halted = step(state, Counted(BAD, NOW))
    assert halted.phase is phase
    assert "2 in d.a" in halted.reason
    assert step(in_phase(Phase.SOAKING), Counted(BAD, NOW)).phase is Phase.ROLLING_BACK


def test_a_paused_rollout_goes_on_with_the_stage_it_was_in() -> None:
    resumed = step(in_phase(Phase.PAUSED), Resumed())
    assert (resumed.phase, resumed.stage, resumed.reason) == (Phase.WIDENING, 0, "")


def test_restarts_count_only_where_work_is_owed() -> None:
    running = in_phase(Phase.RUNNING)
    assert step(running, Woke()) == running
    state = drawn()
    for _ in range(MAX_WAKES):
        state = step(state, Woke())
    assert state.phase is Phase.WIDENING
    paused = step(state, Woke())
    assert paused.phase is Phase.PAUSED
    assert f"{MAX_WAKES + 1} restarts" in paused.reason


def test_a_withdrawal_is_tried_for_ever() -> None:
    state = in_phase(Phase.ROLLING_BACK)
    for _ in range(3 * MAX_WAKES):
        state = step(state, Woke())
    assert owed(state) == Publish(Order.ROLL_BACK)


def test_a_rollout_of_nobody_or_of_one_group_twice_is_refused() -> None:
    with pytest.raises(RolloutError, match="at least one"):
        begin("r1", PLAN, ())
    with pytest.raises(RolloutError, match="each once"):
        begin("r1", PLAN, (GROUPS[0], GROUPS[0]))


def test_too_little_entropy_is_our_misuse() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        step(begin("r1", PLAN, GROUPS), Drawn(bytes(31), MEMBERS))


def test_only_what_is_over_is_over() -> None:
    over = {phase for phase in Phase if in_phase(phase).is_over}
    assert over == {Phase.ABORTED, Phase.DONE}


DAMAGED: dict[str, tuple[Phase, dict[str, Any]]] = {
    "a stage beyond the plan": (Phase.RUNNING, {"stage": 2}),
    "a stage before the plan": (Phase.RUNNING, {"stage": -1}),
    "a soak without an end": (Phase.SOAKING, {"soak_until": None}),
    "an end without a soak": (Phase.RUNNING, {"soak_until": "2026-11-24T12:00:00.000000Z"}),
    "a phase nobody knows": (Phase.RUNNING, {"phase": "flying"}),
    "a plan that is none": (Phase.RUNNING, {"plan": {}}),
    "groups that are none": (Phase.RUNNING, {"groups": [{"a": 1}]}),
}


@pytest.mark.parametrize(("phase", "change"), DAMAGED.values(), ids=DAMAGED)
def test_a_state_that_cannot_be_is_no_state(phase: Phase, change: dict[str, Any]) -> None:
    document = json.loads(to_bytes(in_phase(phase))) | change
    with pytest.raises(FormatError):
        from_bytes(canonical.to_bytes(document))


def test_a_group_whose_reach_misses_a_stage_is_no_state() -> None:
    state = in_phase(Phase.RUNNING)
    short = replace(state, groups=(replace(state.groups[0], reach=(1,)),))
    with pytest.raises(FormatError, match=r"reach of d\.a"):
        from_bytes(to_bytes(short))


@given(st.lists(st.sampled_from([*EVENTS, Counted(BAD, NOW), Woke()]), max_size=40))
def test_no_order_of_events_widens_after_a_withdrawal(events: list[Event]) -> None:
    state, withdrawn = begin("r1", PLAN, GROUPS), False
    for event in events:
        try:
            state = step(state, event)
        except RolloutError:
            continue
        withdrawn = withdrawn or state.phase in (Phase.ROLLING_BACK, Phase.ABORTING)
        assert not (withdrawn and owed(state) == Publish(Order.INSTALL))
        assert from_bytes(to_bytes(state)) == state

"""The round machine: its table, its scenarios, and what no sequence of events can break."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.errors import IllegalEventError, StoredStateError
from wildflower.strategies.round import (
    MAX_WAKES,
    TRANSITIONS,
    Aggregated,
    Applied,
    Apply,
    DrawCohort,
    Drawn,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Gathered,
    Invite,
    Phase,
    Reached,
    Record,
    Recorded,
    Round,
    Train,
    Woke,
    from_bytes,
    owed,
    step,
    to_bytes,
)

COHORT = ("a", "b", "c", "d")
NEW = Round("t1", 2, 3, secure=True)
EVENTS: list[Event] = [
    Drawn(("d", "c", "b", "a")),
    Gathered(("a", "b", "c")),
    Reached("mask"),
    Aggregated(("c", "a", "b"), "sum", {"loss": 1.5}),
    Applied("model"),
    Evaluated({"accuracy": 0.5}),
    Recorded(),
    Failed("No sum."),
    Woke(),
]


def after(*events: Event, state: Round = NEW) -> Round:
    for event in events:
        state = step(state, event)
    return state


STATES: dict[str, Round] = {
    "planned": NEW,
    "sampling": after(*EVENTS[:1]),
    "training": after(*EVENTS[:2]),
    "masking": after(*EVENTS[:3]),
    "aggregated": after(*EVENTS[:4]),
    "applied": after(*EVENTS[:5]),
    "evaluated": after(*EVENTS[:6]),
    "recorded": after(*EVENTS[:7]),
    "aborted": after(EVENTS[0], Failed("No sum.")),
}
OUT_OF_ORDER = {("aggregated", Evaluated), ("applied", Applied)}


@pytest.mark.parametrize(("name", "event"), list(itertools.product(STATES, EVENTS[:-1])))
def test_a_phase_takes_exactly_the_events_in_its_table(name: str, event: Event) -> None:
    state = STATES[name]
    if type(event) in TRANSITIONS[state.phase] and (name, type(event)) not in OUT_OF_ORDER:
        assert step(state, event).phase is TRANSITIONS[state.phase][type(event)]
    else:
        before = to_bytes(state)
        with pytest.raises(IllegalEventError, match="round 2 of t1"):
            step(state, event)
        assert to_bytes(state) == before


OWED: dict[str, Effect | None] = {
    "planned": DrawCohort("t1", 2, 3),
    "sampling": Invite(COHORT),
    "training": Train(("a", "b", "c"), secure=True, quorum=3),
    "masking": Train(("a", "b", "c"), secure=True, quorum=3),
    "aggregated": Apply("sum"),
    "applied": Evaluate("model"),
    "evaluated": Record("model"),
    "recorded": None,
    "aborted": None,
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_owes_exactly_one_effect(name: str) -> None:
    assert owed(STATES[name]) == OWED[name]


def test_a_round_that_goes_well_holds_all_that_the_record_needs() -> None:
    assert STATES["recorded"] == Round(
        "t1",
        2,
        3,
        secure=True,
        phase=Phase.RECORDED,
        cohort=COHORT,
        connected=("a", "b", "c"),
        survivors=("a", "b", "c"),
        aggregate="sum",
        model="model",
        metrics={"loss": 1.5, "accuracy": 0.5},
    )


QUORUM: dict[str, tuple[list[Event], str]] = {
    "too small a population": (
        [Drawn(("a", "b", "a"))],
        "Only 2 devices could be drawn; the quorum is 3.",
    ),
    "too few connected": (
        [EVENTS[0], Gathered(("a",))],
        "Only 1 devices of 4 were connected in time; the quorum is 3.",
    ),
    "too few updates": (
        [EVENTS[0], EVENTS[1], Reached("unmask"), Aggregated(("a", "b"), "sum", {})],
        "Only 2 devices of 3 sent their update; the quorum is 3.",
    ),
}


@pytest.mark.parametrize(("events", "reason"), QUORUM.values(), ids=QUORUM)
def test_fewer_devices_than_the_quorum_abort_the_round(events: list[Event], reason: str) -> None:
    state = after(*events)
    assert (state.phase, state.reason) == (Phase.ABORTED, reason)
    assert (state.stage, state.aggregate, owed(state)) == ("", "", None)


def test_a_failure_keeps_its_reason() -> None:
    state = step(STATES["masking"], Failed("The session could not finish."))
    assert (state.phase, state.stage) == (Phase.ABORTED, "")
    assert state.reason == "The session could not finish."


def test_a_round_cut_off_in_training_gathers_its_cohort_again() -> None:
    state = step(STATES["masking"], Woke())
    assert state == replace(STATES["sampling"], wakes=1)


@pytest.mark.parametrize("name", ["aggregated", "applied", "evaluated"])
def test_a_round_cut_off_later_goes_on_from_the_stored_aggregate(name: str) -> None:
    state = step(STATES[name], Woke())
    assert state == replace(STATES[name], wakes=1)
    assert owed(state) == OWED[name]


@pytest.mark.parametrize("name", ["recorded", "aborted"])
def test_a_round_that_is_over_sleeps_on(name: str) -> None:
    assert step(STATES[name], Woke()) == STATES[name]


def test_a_crash_loop_ends_the_round() -> None:
    state = after(EVENTS[0], *[Woke()] * MAX_WAKES)
    assert state.phase is Phase.SAMPLING
    state = step(state, Woke())
    assert (state.phase, state.reason) == (
        Phase.ABORTED,
        f"The server stopped {MAX_WAKES + 1} times during this round.",
    )


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
@settings(max_examples=60)
def test_no_model_comes_before_its_aggregate_and_no_record_before_its_model(
    events: list[Event],
) -> None:
    state = NEW
    for event in events:
        try:
            state = step(state, event)
        except IllegalEventError:
            continue
        assert from_bytes(to_bytes(state)) == state
        assert not state.model or state.aggregate
        assert state.phase is not Phase.RECORDED or state.model
        assert (state.phase is Phase.ABORTED) == bool(state.reason)
        assert not state.survivors or len(state.survivors) >= state.quorum


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_stored_state_comes_back(state: Round) -> None:
    assert from_bytes(to_bytes(state)) == state


def test_the_stored_form_is_canonical() -> None:
    left = replace(NEW, metrics={"b": 1.0, "a": 2})
    right = replace(NEW, metrics={"a": 2.0, "b": 1})
    assert to_bytes(left) == to_bytes(right)
    with pytest.raises(StoredStateError, match="canonical"):
        from_bytes(to_bytes(NEW) + b" ")


def test_a_figure_that_is_no_number_is_not_stored() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        to_bytes(replace(NEW, metrics={"loss": float("nan")}))


def stored(**changes: Any) -> bytes:
    document = {**json.loads(to_bytes(NEW)), **changes}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        stored(kind="wildflower.rollout"),
        stored(format=2),
        stored(phase="resting"),
        stored(number="2"),
        stored(secure=1),
        stored(cohort="abc"),
        stored(cohort=[1, [2]]),
        stored(metrics={"loss": "low"}),
        stored(metrics={"loss": float("nan")}),
        stored(more=1),
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_stored_round_is_refused(data: bytes) -> None:
    with pytest.raises(StoredStateError):
        from_bytes(data)


@given(st.integers(0, len(to_bytes(STATES["applied"])) - 1), st.integers(0, 255))
@settings(max_examples=60)
def test_a_flipped_byte_is_refused_or_another_round(place: int, byte: int) -> None:
    data = bytearray(to_bytes(STATES["applied"]))
    data[place] = byte
    try:
        state = from_bytes(bytes(data))
    except StoredStateError:
        return
    assert to_bytes(state) == data

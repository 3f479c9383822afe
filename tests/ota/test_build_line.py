"""The release line: its table, its scenarios, and which model is worked on next."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.build.line import (
    KIND,
    MAX_WAKES,
    TRANSITIONS,
    Build,
    Built,
    Candidate,
    Effect,
    Event,
    Failed,
    Gate,
    Passed,
    Phase,
    Publish,
    Published,
    Sign,
    Signed,
    Stage,
    State,
    Superseded,
    Woke,
    candidates,
    is_candidate,
    key,
    owed,
    step,
    superseded,
    supersedes,
)
from wildflower.ota.errors import FormatError, IllegalEventError

ARTIFACTS = (Candidate("linux-generic", "aa" * 32, "bb" * 32),)
START = State("digits", "ab" * 32, order=3)
EVENTS: list[Event] = [
    Built(ARTIFACTS),
    Passed(),
    Signed(("cc" * 32,)),
    Published(),
    Failed("why"),
    Superseded("dd" * 32),
    Woke(),
]
SUCCESS: list[Event] = EVENTS[:4]


def after(*events: Event) -> State:
    state = START
    for event in events:
        state = step(state, event)
    return state


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS[:-1], ids=lambda event: type(event).__name__)
def test_a_phase_takes_exactly_the_events_in_its_table(phase: Phase, event: Event) -> None:
    state = replace(START, phase=phase)
    if type(event) in TRANSITIONS[phase]:
        assert step(state, event).phase is TRANSITIONS[phase][type(event)]
    else:
        with pytest.raises(IllegalEventError, match=str(phase)):
            step(state, event)


def test_a_model_is_built_gated_signed_and_published_in_this_order() -> None:
    effects: list[Effect | None] = [owed(after(*SUCCESS[:count])) for count in range(5)]
    assert effects == [
        Build("ab" * 32),
        Gate(ARTIFACTS),
        Sign(ARTIFACTS, 3),
        Publish(("cc" * 32,)),
        None,
    ]


@pytest.mark.parametrize("steps", range(4))
def test_a_line_that_fails_owes_nothing_more_and_says_why(steps: int) -> None:
    failed = step(after(*SUCCESS[:steps]), Failed("accuracy fell by 3 points"))
    assert (failed.phase, owed(failed)) == (Phase.FAILED, None)
    assert failed.reason == "accuracy fell by 3 points"


def test_a_restart_changes_nothing_but_the_count() -> None:
    assert replace(step(START, Woke()), wakes=0) == START


def test_progress_forgives_the_restarts_before_it() -> None:
    assert after(Woke(), Woke(), Built(ARTIFACTS)).wakes == 0


@pytest.mark.parametrize("steps", range(4))
def test_a_phase_that_kills_its_server_again_and_again_is_given_up(steps: int) -> None:
    state = after(*SUCCESS[:steps])
    for _ in range(MAX_WAKES):
        state = step(state, Woke())
        assert owed(state) is not None
    state = step(state, Woke())
    assert state.phase is Phase.FAILED
    assert "restarted 6 times" in state.reason


@pytest.mark.parametrize("events", [SUCCESS, [Failed("why")]], ids=["published", "failed"])
def test_a_line_that_has_ended_counts_no_restarts(events: list[Event]) -> None:
    ended = after(*events)
    assert step(ended, Woke()) == ended


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
@settings(max_examples=60)
def test_stored_states_come_back_and_nothing_is_signed_before_its_gates(
    events: list[Event],
) -> None:
    state, has_passed = START, False
    for event in events:
        try:
            state = step(state, event)
        except IllegalEventError:
            continue
        has_passed = has_passed or isinstance(event, Passed)
        assert State.from_bytes(state.to_bytes()) == state
        assert has_passed or not isinstance(owed(state), Sign | Publish)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "somewhere"},
        {"order": "many"},
        {"artifacts": [["linux-generic"]]},
        {"artifacts": 3},
        {"releases": None},
    ],
    ids=str,
)
def test_bytes_that_are_no_state_are_refused(change: dict[str, object]) -> None:
    document = canonical.from_bytes(START.to_bytes(), kind=KIND) | change
    with pytest.raises(FormatError):
        State.from_bytes(canonical.to_bytes(document))


@given(st.binary(max_size=60), st.integers(0, 250))
@settings(max_examples=60)
def test_damaged_bytes_are_refused_as_such(noise: bytes, at: int) -> None:
    data = START.to_bytes()
    for damaged in (noise, data[:at], data[:at] + noise + data[at:]):
        if damaged != data:
            try:
                State.from_bytes(damaged)
            except FormatError:
                continue


STAGE = Stage("quantise", 1, {"reduce_range": True})


def test_a_key_is_the_same_forever() -> None:
    written = (
        f'{{"format":1,"inputs":{{"model":"{"aa" * 32}"}},"kind":"wildflower.build-key",'
        '"parameters":{"reduce_range":true},"stage":"quantise",'
        f'"toolchain":"{"bb" * 32}","version":1}}'
    )
    found = key(STAGE, {"model": "aa" * 32}, "bb" * 32)
    assert found == hashlib.sha256(written.encode()).hexdigest()


@pytest.mark.parametrize(
    ("stage", "inputs", "toolchain"),
    [
        (replace(STAGE, name="convert"), {"model": "aa" * 32}, "bb" * 32),
        (replace(STAGE, version=2), {"model": "aa" * 32}, "bb" * 32),
        (replace(STAGE, parameters={"reduce_range": False}), {"model": "aa" * 32}, "bb" * 32),
        (STAGE, {"model": "ac" * 32}, "bb" * 32),
        (STAGE, {"other": "aa" * 32}, "bb" * 32),
        (STAGE, {"model": "aa" * 32}, "bc" * 32),
    ],
    ids=["name", "version", "parameters", "input", "input name", "toolchain"],
)
def test_whatever_could_change_the_outputs_changes_the_key(
    stage: Stage, inputs: dict[str, str], toolchain: str
) -> None:
    assert key(stage, inputs, toolchain) != key(STAGE, {"model": "aa" * 32}, "bb" * 32)


def line(name: str, order: int, phase: Phase = Phase.MODEL) -> State:
    return State(name, f"{order:064x}", order, phase)


def test_a_newer_model_takes_the_place_of_a_waiting_one_of_its_name() -> None:
    assert supersedes(line("digits", 2), line("digits", 1))


@pytest.mark.parametrize(
    ("newer", "queued"),
    [
        (line("digits", 1), line("digits", 2)),
        (line("digits", 1), line("digits", 1)),
        (line("words", 2), line("digits", 1)),
        (line("digits", 2), line("digits", 1, Phase.BUILT)),
        (line("digits", 2, Phase.FAILED), line("digits", 1)),
    ],
    ids=["older", "itself", "another name", "already built", "newer one failed"],
)
def test_what_does_not_supersede(newer: State, queued: State) -> None:
    assert not supersedes(newer, queued)


def test_overtaken_lines_are_named_with_the_newest_that_overtook_them() -> None:
    lines = [line("digits", order) for order in (1, 3, 2)]
    assert superseded(lines) == (
        (lines[0], Superseded(lines[1].model)),
        (lines[2], Superseded(lines[1].model)),
    )


def test_a_build_in_flight_is_not_superseded() -> None:
    lines = [line("digits", 1), line("digits", 2)]
    assert superseded(lines, in_flight=[lines[0].model]) == ()


def test_the_newest_waiting_model_of_each_name_is_next() -> None:
    lines = [line("digits", 1), line("digits", 3), line("words", 2)]
    assert {*candidates(lines)} == {lines[1], lines[2]}


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_line_that_has_begun_is_finished_before_another_starts(in_flight: bool) -> None:
    begun = line("digits", 1) if in_flight else line("digits", 1, Phase.GATED)
    lines = [line("digits", 2), begun]
    assert candidates(lines, in_flight=[begun.model] if in_flight else []) == (begun,)


def test_ended_lines_are_not_worked_on() -> None:
    assert candidates([line("digits", 1, Phase.PUBLISHED), line("words", 1, Phase.FAILED)]) == ()


@pytest.mark.parametrize(
    ("evaluation", "incumbent", "slack", "expected"),
    [
        (None, None, 0.0, True),
        (0.1, None, 0.0, True),
        (0.9, 0.9, 0.0, True),
        (0.89, 0.9, 0.0, False),
        (0.89, 0.9, 0.02, True),
        (None, 0.9, 0.0, False),
    ],
)
def test_a_model_is_a_candidate_if_its_evaluation_is_not_worse(
    evaluation: float | None, incumbent: float | None, slack: float, expected: bool
) -> None:
    assert is_candidate(evaluation, incumbent, slack=slack) is expected

"""Handlers step by step: the table, the scenarios, and power cuts anywhere."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ota.test_software import LABELS

from wildflower.ota import canonical
from wildflower.ota.device.handlers import (
    KIND,
    MAX_WAKES,
    TRANSITIONS,
    Act,
    Call,
    Done,
    Event,
    Failed,
    Fetch,
    MustRestart,
    Offered,
    Phase,
    Report,
    Restart,
    State,
    Step,
    Woke,
    owed,
    step,
)
from wildflower.ota.device.report import MAX_REASON
from wildflower.ota.errors import FormatError, IllegalEventError

EVENTS: list[Event] = [Offered(LABELS), Done(), MustRestart(), Failed("why")]


def at(phase: Phase) -> State:
    return State() if phase is Phase.IDLE else State(phase, LABELS)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_phase_takes_exactly_the_events_in_its_table(phase: Phase, event: Event) -> None:
    if type(event) in TRANSITIONS[phase]:
        assert step(at(phase), event).phase is TRANSITIONS[phase][type(event)]
    else:
        with pytest.raises(IllegalEventError, match=f"{type(event).__name__} in phase {phase}"):
            step(at(phase), event)


@pytest.mark.parametrize("phase", Phase)
def test_waking_moves_only_what_waits_for_it(phase: Phase) -> None:
    woken = step(at(phase), Woke()).phase
    assert woken is (Phase.COMMITTING if phase is Phase.RESTARTING else phase)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_but_idle_owes_one_act(phase: Phase) -> None:
    assert (owed(at(phase)) is None) == (phase is Phase.IDLE)


FRAGILE = {
    Phase.DOWNLOADED: Phase.ENDED,
    Phase.INSTALLING: Phase.ROLLING_BACK,
    Phase.INSTALLED: Phase.ROLLING_BACK,
    Phase.COMMITTING: Phase.ROLLING_BACK,
    Phase.ROLLING_BACK: Phase.ENDED,
}


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.RESTARTING])
def test_a_step_that_ends_the_agent_again_and_again_is_given_up(phase: Phase) -> None:
    state = at(phase)
    for _ in range(MAX_WAKES):
        state = step(state, Woke())
        assert state.phase is phase
    state = step(state, Woke())
    assert state.phase is FRAGILE.get(phase, phase)
    assert ("the agent went down 4 times in" in state.reason) == (phase in FRAGILE)


class PowerCutError(Exception):
    pass


@dataclass
class Device:
    """Memory for a disk, scripted outcomes, and plugs pulled at chosen acts."""

    script: dict[Step, Event] = field(default_factory=dict)
    cuts: frozenset[int] = frozenset()
    state: State = field(default_factory=State)
    log: list[Act] = field(default_factory=list)
    tries: int = 0

    def run(self, act: Act) -> Event:
        self.tries += 1
        self.log.append(act)
        if self.tries in self.cuts or isinstance(act, Restart):
            raise PowerCutError
        return self.script.get(act.step, Done()) if isinstance(act, Call) else Done()

    def deploy(self) -> list[Act]:
        event: Event = Offered(LABELS)
        while True:
            self.state = step(State.from_bytes(self.state.to_bytes()), event)
            try:
                while act := owed(self.state):
                    self.state = step(self.state, self.run(act))
            except PowerCutError:
                event = Woke()
            else:
                return self.log


def call(called: Step) -> Call:
    return Call(LABELS, called)


BEGIN: list[Act] = [Fetch(LABELS), call(Step.DOWNLOAD), call(Step.INSTALL)]
ASK, COMMIT, BACK = call(Step.NEEDS_RESTART), call(Step.COMMIT), call(Step.ROLLBACK)
BROKE = Failed("broke")
SCENARIOS: dict[str, tuple[dict[Step, Event], list[Act]]] = {
    "success": ({}, [*BEGIN, ASK, COMMIT, Report(LABELS, "")]),
    "with a restart": (
        {Step.NEEDS_RESTART: MustRestart()},
        [*BEGIN, ASK, Restart(), COMMIT, Report(LABELS, "")],
    ),
    "refused by the handler": ({Step.DOWNLOAD: BROKE}, [*BEGIN[:2], Report(LABELS, "broke")]),
    "not installed": ({Step.INSTALL: BROKE}, [*BEGIN, BACK, Report(LABELS, "broke")]),
    "nothing said about restarts": (
        {Step.NEEDS_RESTART: BROKE},
        [*BEGIN, ASK, BACK, Report(LABELS, "broke")],
    ),
    "does not work after a restart": (
        {Step.NEEDS_RESTART: MustRestart(), Step.COMMIT: BROKE},
        [*BEGIN, ASK, Restart(), COMMIT, BACK, Report(LABELS, "broke")],
    ),
    "neither forward nor back": (
        {Step.COMMIT: BROKE, Step.ROLLBACK: Failed("stuck")},
        [*BEGIN, ASK, COMMIT, BACK, Report(LABELS, "broke; then stuck")],
    ),
}


@pytest.mark.parametrize(("script", "acts"), SCENARIOS.values(), ids=SCENARIOS)
def test_scenarios_take_the_way_they_are_told(script: dict[Step, Event], acts: list[Act]) -> None:
    assert Device(script).deploy() == acts


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SCENARIOS)), cuts=st.frozensets(st.integers(1, 12), max_size=3))
def test_power_cuts_anywhere_repeat_acts_and_skip_none(name: str, cuts: frozenset[int]) -> None:
    script, acts = SCENARIOS[name]
    device = Device(script, cuts)
    done = device.deploy()
    assert list(dict.fromkeys(done)) == acts
    assert device.state == State()


def test_a_reason_is_a_sentence_and_not_a_log_file() -> None:
    assert len(step(at(Phase.INSTALLING), Failed("x" * 10_000)).reason) == MAX_REASON


def stored(**changes: object) -> bytes:
    body = canonical.from_bytes(at(Phase.INSTALLING).to_bytes(), kind=KIND)
    return canonical.to_bytes(body | changes)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (stored(phase="flying"), "flying"),
        (stored(software=5), "software state"),
        (stored(software="{}"), "expected"),
        (stored(software=""), "contradict"),
        (stored(phase="idle"), "contradict"),
        (stored(wakes="many"), "software state"),
        (b"{}", "expected"),
    ],
)
def test_a_stored_state_that_cannot_be_is_told(data: bytes, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        State.from_bytes(data)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(stored()) - 1), st.binary(max_size=3))
def test_a_damaged_state_is_an_error_or_a_state(place: int, noise: bytes) -> None:
    data = stored()
    try:
        state = State.from_bytes(data[:place] + noise + data[place + len(noise) :])
    except FormatError:
        return
    assert State.from_bytes(state.to_bytes()) == state

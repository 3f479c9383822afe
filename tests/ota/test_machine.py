"""The update machine: its table, its scenarios, and what no sequence of events can break."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_fakes import NOON, manifest

from wildflower.ota import canonical
from wildflower.ota.device import shell
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
from wildflower.ota.device.machine import (
    KIND,
    MAX_PROBATION_WAKES,
    MAX_TRIAL_WAKES,
    MAX_WAKES,
    TRANSITIONS,
    Abandoned,
    Done,
    Event,
    Failed,
    Offered,
    Paused,
    Phase,
    Recalled,
    Resumed,
    State,
    Switched,
    Withdrawn,
    Woke,
    owed,
    step,
)
from wildflower.ota.device.report import MAX_REASON, Outcome
from wildflower.ota.errors import FormatError, IllegalEventError, PostponedError

OLD, NEW = manifest(1), manifest(2)
WHY = Failed(Outcome.FAILED, "why")
EVENTS: list[Event] = [
    Offered(NEW, "roll"),
    Recalled(OLD, "back"),
    Done(),
    Switched(NOON),
    Abandoned("too late"),
    WHY,
    Paused(),
    Resumed(),
    Withdrawn(),
    Woke(),
]


def at(phase: Phase) -> State:
    """Return a state that can be in a phase."""
    if phase is Phase.IDLE:
        return State(attempt=1)
    outcome = Outcome.FAILED if phase is Phase.REPORTED else None
    since = NOON if phase is Phase.PROBATION else None
    return State(phase, NEW, "roll", attempt=1, outcome=outcome, since=since)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS[:-1], ids=lambda event: type(event).__name__)
def test_a_phase_takes_exactly_the_events_in_its_table(phase: Phase, event: Event) -> None:
    state = at(phase)
    if type(event) in TRANSITIONS[phase]:
        assert step(state, event).phase is TRANSITIONS[phase][type(event)]
    else:
        with pytest.raises(IllegalEventError, match=f"{type(event).__name__} in phase {phase}"):
            step(state, event)


@pytest.mark.parametrize("phase", Phase)
def test_waking_moves_nothing_by_itself(phase: Phase) -> None:
    assert step(at(phase), Woke()).phase is phase


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_owes_one_effect_but_those_that_wait(phase: Phase) -> None:
    assert (owed(at(phase)) is None) == (phase in (Phase.IDLE, Phase.PAUSED))


SUCCESS: dict[type[Effect], Event] = {Switch: Switched(NOON)}


class PowerCutError(Exception):
    pass


@dataclass
class Device:
    """Memory for a disk, scripted outcomes, and plugs pulled at chosen effects."""

    script: dict[type[Effect], Event] = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)
    cut_after: bool = False
    first: Event = field(default_factory=lambda: Offered(NEW, "roll"))
    state: State = field(default_factory=State)
    log: list[Effect] = field(default_factory=list)
    tries: int = 0

    def load(self) -> State:
        return State.from_bytes(self.state.to_bytes())

    def save(self, state: State) -> None:
        self.state = state

    def run(self, effect: Effect) -> Event:
        self.tries += 1
        cut = self.tries in self.cuts
        if cut and not self.cut_after:
            raise PowerCutError
        self.log.append(effect)
        if cut:
            raise PowerCutError
        return self.script.get(type(effect), SUCCESS.get(type(effect), Done()))

    def deploy(self) -> list[Effect]:
        """Offer a release and switch the device on again after every power cut."""
        go: Callable[[shell.StateStore, shell.Runner], None]
        go = partial(shell.handle, event=self.first)
        while True:
            try:
                go(self, self.run)
            except PowerCutError:
                go = partial(shell.wake, received=self.tries)  # progress: no reboot loop
            else:
                return self.log


def told(outcome: Outcome, reason: str = "") -> Report:
    return Report(NEW, "roll", 1, outcome, reason)


PROVE: list[Effect] = [Try(NEW), Switch(NEW), Watch(NEW, 1, NOON)]
PREPARE: list[Effect] = [Qualify(NEW), Fetch(NEW), Verify(NEW), Stage(NEW), Confirm(NEW, "roll")]
LACKS = Failed(Outcome.INCOMPATIBLE, "too old")
LIED = Failed(Outcome.REFUSED, "wrong digest")
BROKE = Failed(Outcome.ROLLED_BACK, "golden outputs differ")
SCENARIOS: dict[str, tuple[Device, list[Effect]]] = {
    "success": (Device(), [*PREPARE, *PROVE, Commit(NEW), told(Outcome.COMMITTED)]),
    "not for this device": (
        Device({Qualify: LACKS}),
        [Qualify(NEW), told(Outcome.INCOMPATIBLE, "too old")],
    ),
    "the mirror lies": (
        Device({Fetch: LIED}),
        [*PREPARE[:2], told(Outcome.REFUSED, "wrong digest")],
    ),
    "the disk changed a byte": (Device({Verify: WHY}), [*PREPARE[:3], told(Outcome.FAILED, "why")]),
    "the disk is full": (Device({Stage: WHY}), [*PREPARE[:4], told(Outcome.FAILED, "why")]),
    "withdrawn while it was fetched": (Device({Confirm: Withdrawn()}), [*PREPARE, Discard(NEW)]),
    "paused while it was fetched": (Device({Confirm: Paused()}), PREPARE),
    "the trial fails": (
        Device({Try: BROKE}),
        [
            *PREPARE,
            Try(NEW),
            Quarantine(NEW, "golden outputs differ"),
            RollBack(NEW),
            told(Outcome.ROLLED_BACK, "golden outputs differ"),
        ],
    ),
    "the pointer cannot be moved": (
        Device({Switch: WHY}),
        [*PREPARE, Try(NEW), Switch(NEW), RollBack(NEW), told(Outcome.FAILED, "why")],
    ),
    "the device does badly with it": (
        Device({Watch: BROKE}),
        [
            *PREPARE,
            *PROVE,
            Quarantine(NEW, "golden outputs differ"),
            RollBack(NEW),
            told(Outcome.ROLLED_BACK, "golden outputs differ"),
        ],
    ),
    "its probation is not decided in time": (
        Device({Watch: Abandoned("too late")}),
        [*PREPARE, *PROVE, RollBack(NEW), told(Outcome.FAILED, "too late")],
    ),
    "ordered back": (
        Device(first=Recalled(NEW, "roll")),
        [RollBack(NEW), told(Outcome.ROLLED_BACK, "ordered back by rollout roll")],
    ),
}


@pytest.mark.parametrize(("device", "effects"), SCENARIOS.values(), ids=SCENARIOS)
def test_scenarios_take_the_way_they_are_told(device: Device, effects: list[Effect]) -> None:
    assert device.deploy() == effects
    assert device.state.phase in (Phase.IDLE, Phase.PAUSED)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    cuts=st.sets(st.integers(1, 16), max_size=4),
    after=st.booleans(),
)
def test_power_cuts_anywhere_repeat_effects_and_skip_none(
    name: str, cuts: set[int], after: bool
) -> None:
    calm, effects = SCENARIOS[name]
    device = Device(calm.script, cuts, after, calm.first)
    done = device.deploy()
    if not any("down" in getattr(effect, "reason", "") for effect in done):
        assert list(dict.fromkeys(done)) == effects  # repeats allowed, order kept
    assert owed(device.state) is None


def test_a_trial_that_ends_the_agent_twice_is_quarantined() -> None:
    device = Device(cuts={6, 7})  # the sixth effect is the trial
    done = device.deploy()
    reason = "the trial took the agent down, 2 times without progress"
    assert MAX_TRIAL_WAKES == 1
    assert done[-3:] == [
        Quarantine(NEW, reason),
        RollBack(NEW),
        told(Outcome.ROLLED_BACK, reason),
    ]


def test_a_release_that_ends_the_agent_on_probation_again_and_again_is_quarantined() -> None:
    device = Device(cuts={8, 9, 10, 11})  # the eighth effect is the first look
    done = device.deploy()
    reason = "the agent went down on probation, 4 times without progress"
    assert MAX_PROBATION_WAKES == 3
    assert done[-3:] == [
        Quarantine(NEW, reason),
        RollBack(NEW),
        told(Outcome.ROLLED_BACK, reason),
    ]


def test_a_release_on_probation_can_be_ordered_back_and_is_no_longer_watched() -> None:
    back = step(at(Phase.PROBATION), Recalled(NEW, "back"))
    assert (owed(back), back.attempt, back.since) == (RollBack(NEW), 2, None)
    reason = "ordered back by rollout back"
    assert owed(step(back, Done())) == Report(NEW, "back", 2, Outcome.ROLLED_BACK, reason)


def test_what_was_stored_before_there_were_probations_is_read() -> None:
    body = canonical.from_bytes(at(Phase.FETCHING).to_bytes(), kind=KIND)
    del body["since"]
    assert State.from_bytes(canonical.to_bytes(body)) == at(Phase.FETCHING)


@pytest.mark.parametrize(
    "phase", [Phase.CHECKED, Phase.FETCHING, Phase.FETCHED, Phase.VERIFIED, Phase.STAGED]
)
def test_a_reboot_loop_before_the_trial_is_given_up_and_told(phase: Phase) -> None:
    state = at(phase)
    for _ in range(MAX_WAKES):
        state = step(state, Woke())
        assert state.phase is phase
    state = step(state, Woke())
    assert (state.phase, state.outcome) == (Phase.REPORTED, Outcome.FAILED)
    assert state.reason == f"restarts in phase {phase}, 6 times without progress"


def test_a_device_that_is_switched_off_every_night_fetches_on() -> None:
    state = at(Phase.FETCHING)
    for night in range(1, 50):
        state = step(state, Woke(received=night * 1000))
    assert (state.phase, state.received, state.wakes) == (Phase.FETCHING, 49_000, 1)


@pytest.mark.parametrize(
    "phase", [Phase.COMMITTED, Phase.ROLLED_BACK, Phase.QUARANTINED, Phase.REPORTED]
)
def test_what_must_not_be_given_up_is_tried_for_ever(phase: Phase) -> None:
    state = at(phase)
    for _ in range(3 * MAX_WAKES):
        state = step(state, Woke())
    assert state.phase is phase


def test_a_new_phase_counts_its_restarts_anew() -> None:
    assert step(step(at(Phase.CHECKED), Woke()), Done()).wakes == 0


def test_a_resumed_update_begins_with_its_checks() -> None:
    paused = step(at(Phase.STAGED), Paused())
    assert owed(step(paused, Resumed())) == Qualify(NEW)


def test_attempts_are_counted_over_updates() -> None:
    device = Device()
    device.deploy()
    device.deploy()
    assert device.log[-1] == Report(NEW, "roll", 2, Outcome.COMMITTED, "")
    assert device.state == State(attempt=2)


def test_a_reason_is_a_sentence_and_not_a_log_file() -> None:
    state = step(at(Phase.CHECKED), Failed(Outcome.FAILED, "x" * 10_000))
    assert len(state.reason) == MAX_REASON


def test_an_effect_that_is_postponed_stays_owed() -> None:
    device = Device()

    def offline(effect: Effect) -> Event:
        if isinstance(effect, Fetch):
            raise PostponedError("no network")
        return device.run(effect)

    with pytest.raises(PostponedError):
        shell.handle(device, offline, Offered(NEW, "roll"))
    assert device.load().phase is Phase.FETCHING
    shell.resume(device, device.run)
    assert device.load().phase is Phase.IDLE


def test_waking_an_idle_device_stores_nothing() -> None:
    device = Device()
    device.save = pytest.fail  # type: ignore[method-assign,assignment]  # a disk that must not be used
    shell.wake(device, device.run, received=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_nothing_is_tried_before_it_is_staged_nor_committed_before_it_was_watched(
    events: list[Event],
) -> None:
    state, passed = State(), set[type[Effect]]()
    for event in events:
        effect = owed(state)
        try:
            after = step(state, event)
        except IllegalEventError:
            continue
        if isinstance(event, Offered):
            passed = set()
        if isinstance(event, Done | Switched) and effect is not None:
            passed.add(type(effect))
        state = after
        assert not isinstance(owed(state), Try) or {Verify, Stage, Confirm} <= passed
        assert not isinstance(owed(state), Switch) or Try in passed
        assert not isinstance(owed(state), Commit) or {Try, Switch, Watch} <= passed
        assert State.from_bytes(state.to_bytes()) == state


def stored(**changes: object) -> bytes:
    body = canonical.from_bytes(at(Phase.FETCHING).to_bytes(), kind=KIND)
    return canonical.to_bytes(body | changes)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (stored(phase="flying"), "flying"),
        (stored(outcome="fine"), "fine"),
        (stored(release=5), "device state"),
        (stored(release="{}"), "expected"),
        (stored(release=""), "contradict"),
        (stored(phase="idle"), "contradict"),
        (stored(phase="reported"), "without its outcome"),
        (stored(phase="probation"), "without its beginning"),
        (stored(since="soon"), "not a time"),
        (stored(since=5), "not a time"),
        (stored(wakes="many"), "device state"),
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

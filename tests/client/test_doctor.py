"""The doctor is shown devices it dislikes: each check, every way it can come out."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.device_fakes import NOON, manifest

from wildflower.client import doctor
from wildflower.client.hold import Hold
from wildflower.client.owner import Owner
from wildflower.doctor import State
from wildflower.ota.device.acceptance import Demands, Rejection
from wildflower.ota.device.conditions import Conditions, Metered, Rules, decide
from wildflower.ota.device.decision import Setback
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.machine import State as UpdateState
from wildflower.ota.device.slots import MARGIN

ONE = manifest(1)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("is_running", "minutes", "state", "told"),
    [
        (False, 1, State.WARN, "what is installed answers all the same"),
        (True, None, State.OK, "just been started"),
        (True, 1, State.OK, "60 s ago"),
        (True, 9, State.OK, "540 s ago"),
        (True, 11, State.WARN, "told nothing for 11 minutes"),
        (True, -5, State.OK, "0 s ago"),
    ],
)
def test_an_agent_that_does_not_turn_is_not_well(
    is_running: bool, minutes: int | None, state: State, told: str
) -> None:
    last = NOON - minutes * MINUTE if minutes is not None else None
    check = doctor.check_agent(is_running=is_running, last_turn=last, now=NOON, poll_s=60.0)
    assert (check.state, told in check.found) == (state, True)


def test_an_agent_that_looks_rarely_is_not_called_stuck() -> None:
    last = NOON - timedelta(hours=9)
    check = doctor.check_agent(is_running=True, last_turn=last, now=NOON, poll_s=3600.0)
    assert check.state is State.OK


@pytest.mark.parametrize(
    ("running", "is_intact", "fallback", "state", "told"),
    [
        ("", False, "", State.WARN, "none is installed yet"),
        (ONE.digest, True, "", State.OK, "light 1"),
        (ONE.digest, False, "ab" * 32, State.WARN, "abababababab answers in its place"),
        (ONE.digest, False, "", State.FAIL, "nothing can answer"),
    ],
)
def test_a_model_that_is_not_what_was_signed_is_told_with_what_answers(
    running: str, is_intact: bool, fallback: str, state: State, told: str
) -> None:
    check = doctor.check_model(running, ONE, is_intact=is_intact, fallback=fallback)
    assert (check.state, told in check.found) == (state, True)
    assert bool(check.advice) == (state is not State.OK)


def test_a_damaged_way_back_is_told() -> None:
    assert doctor.check_fallback("", is_intact=False).state is State.OK
    assert doctor.check_fallback("ab" * 32, is_intact=True).state is State.OK
    assert doctor.check_fallback("ab" * 32, is_intact=False).state is State.WARN


def test_an_update_is_told_with_what_it_waits_for() -> None:
    under_way = UpdateState(Phase.FETCHING, ONE, "r1", attempt=1)
    assert "nothing" in doctor.check_update(UpdateState(), {}, [], NOON).found
    check = doctor.check_update(under_way, {}, [], NOON)
    assert check.found == f"the device is fetching {ONE.digest[:12]}"
    check = doctor.check_update(under_way, {}, ["process 7 holds", "paused"], NOON)
    assert check.found.endswith("it waits: process 7 holds; paused")
    check = doctor.check_update(replace(under_way, wakes=3), {}, [], NOON)
    assert (check.state, "after 3 restarts" in check.found) == (State.WARN, True)


def test_what_could_not_be_installed_is_told_with_when_it_is_tried_again() -> None:
    setbacks = {"ab" * 32: Setback(1, NOON), "cd" * 32: Setback(2, NOON - timedelta(days=2))}
    reasons = {"ab" * 32: "memory: found 1, expected >= 2"}
    check = doctor.check_update(UpdateState(), setbacks, [], NOON, reasons=reasons)
    assert check.state is State.WARN
    assert check.found == (
        "abababababab could not be installed, once: memory: found 1, expected >= 2; "
        "if it is offered, again at 2026-06-01 12:05 UTC; "
        "cdcdcdcdcdcd could not be installed, 2 times; if it is offered, again at the next look"
    )


def test_a_probation_is_told_with_how_far_it_is_and_until_when() -> None:
    watched = replace(ONE, trial=replace(ONE.trial, probation_s=3600))
    state = UpdateState(Phase.PROBATION, watched, "r1", attempt=1, since=NOON)
    check = doctor.check_update(state, {}, [], NOON, healthy_s=90.0)
    assert check.state is State.OK
    assert "90 of 3600 healthy seconds were seen" in check.found
    assert check.found.endswith("by 2026-06-02 16:00 UTC it is taken back")


def test_quarantine_is_told_with_the_reason() -> None:
    assert doctor.check_quarantine({}).state is State.OK
    check = doctor.check_quarantine({"ab" * 32: "answers differ"})
    assert (check.state, check.found) == (State.WARN, "abababababab: answers differ")
    assert "new release" in check.advice


@pytest.mark.parametrize(
    ("owner", "state", "told"),
    [
        (Owner(), State.OK, "neither paused nor pinned"),
        (Owner(paused="fair"), State.WARN, "paused: fair"),
        (Owner(pinned=ONE.digest), State.OK, "which runs"),
        (Owner(pinned="ab" * 32), State.WARN, "which does not run"),
    ],
)
def test_what_the_owner_decided_is_told_with_how_to_undo_it(
    owner: Owner, state: State, told: str
) -> None:
    check = doctor.check_owner(owner, ONE.digest)
    assert (check.state, told in check.found) == (state, True)
    assert ("wildflower agent" in check.advice) == (owner != Owner())


def test_who_holds_is_told() -> None:
    assert doctor.check_holds([]).found == "nobody holds the model"
    found = doctor.check_holds([Hold("a", "measuring", "process 7", 9.6)]).found
    assert found == "process 7 holds for 10 s more: measuring"


def test_an_owners_rule_that_applies_is_told_and_is_no_fault() -> None:
    assert doctor.check_fetching(decide(Rules(), Conditions(), NOON)).found == "allowed now"
    rules = Rules(metered=Metered.DELTA)
    found = doctor.check_fetching(decide(rules, Conditions(metered=True), NOON))
    assert found.state is State.OK
    assert found.found == "waits: the network is metered; no whole model is fetched over it"
    assert "`metered`" in found.advice


def test_what_is_demanded_of_releases_is_told_and_which_one_it_keeps_out() -> None:
    demands = Demands(max_epsilon=3.0, min_clients=5, strategies=("secagg+fedavg", "he"))
    told = "epsilon <= 3 for each device, >= 5 devices in the model, made by secagg+fedavg or he"
    assert doctor.check_acceptance(demands, None, NOON).found == told
    assert doctor.check_acceptance(Demands(), None, NOON).state is State.OK
    rejection = Rejection("r1", "ab" * 32, demands.digest, NOON, "epsilon: found 9, expected <= 3")
    check = doctor.check_acceptance(demands, rejection, NOON + MINUTE)
    assert (check.state, "restart" in check.advice) == (State.WARN, True)
    assert check.found == (
        "abababababab is not installed: epsilon: found 9, expected <= 3; what runs goes on"
    )
    for other, now in ((Demands(max_epsilon=9.0), NOON), (demands, NOON + timedelta(days=1))):
        assert doctor.check_acceptance(other, rejection, now).state is State.OK


def test_a_clock_behind_what_was_signed_or_without_a_battery_is_told() -> None:
    assert doctor.check_time(NOON, None).state is State.OK
    assert doctor.check_time(NOON, NOON).state is State.OK
    assert doctor.check_time(NOON, NOON + MINUTE).state is State.WARN
    assert doctor.check_time(NOON.replace(year=2100), NOON).state is State.FAIL


def test_a_disk_must_take_the_next_download_and_its_slot() -> None:
    assert doctor.check_space(2 * 1000 + MARGIN, 1000).state is State.OK
    check = doctor.check_space(2 * 1000 + MARGIN - 1, 1000)
    assert (check.state, "What runs goes on" in check.advice) == (State.FAIL, True)


@pytest.mark.parametrize(
    ("days", "state"), [(15, State.OK), (13, State.WARN), (0, State.FAIL), (-1, State.FAIL)]
)
def test_a_certificate_is_told_before_it_ends(days: int, state: State) -> None:
    check = doctor.check_certificate(NOON + timedelta(days=days), NOON)
    assert (check.state, "enroll" in check.advice) == (state, state is not State.OK)


@pytest.mark.parametrize(
    ("reports", "dropped", "state"), [(3, 0, State.OK), (101, 0, State.WARN), (0, 2, State.WARN)]
)
def test_what_the_server_was_not_told_is_counted(reports: int, dropped: int, state: State) -> None:
    check = doctor.check_owed(reports, 5, dropped)
    assert (check.state, f"{reports} reports and 5 summaries" in check.found) == (state, True)
    assert "1 report and 1 summary wait" in doctor.check_owed(1, 1, 0).found


def test_a_clock_that_cannot_be_right_judges_no_certificate() -> None:
    check = doctor.check_certificate(NOON, NOON.replace(year=2140))
    assert (check.state, "clock" in check.advice) == (State.WARN, True)


def test_a_journal_that_was_damaged_is_told() -> None:
    assert doctor.check_journal(has_damaged=False).state is State.OK
    assert doctor.check_journal(has_damaged=True).state is State.WARN

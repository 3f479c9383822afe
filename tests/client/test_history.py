"""A device's history: what was reported, what is under way, in words."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.device_fakes import NOON, manifest

from wildflower.client.history import PHASES, timeline
from wildflower.ota.device.journal import Entry
from wildflower.ota.device.machine import Phase, State
from wildflower.ota.device.report import Outcome

ONE = manifest(1)
ENTRY = Entry(1, "attempt/1", Outcome.COMMITTED, "r1", ONE.digest, "", "", NOON, sent=True)


def test_every_phase_has_words() -> None:
    assert {*Phase} <= {*PHASES}


def test_what_happened_is_told_in_order_and_by_name() -> None:
    later = replace(
        ENTRY, outcome=Outcome.REFUSED, release="", reason="wrong digest", sent=False,
        at=NOON + timedelta(hours=1),
    )  # fmt: skip
    unknown = replace(ENTRY, outcome=Outcome.ROLLED_BACK, release="ab" * 32)
    found = timeline([ENTRY, later, unknown], State(), {ONE.digest: ONE})
    assert [one.what for one in found] == [
        "installed light 1",
        "refused what a source served",
        "did not keep release abababababab",
    ]
    assert [(one.at, one.why, one.is_told) for one in found[:2]] == [
        (NOON, "", True),
        (later.at, "wrong digest", False),
    ]


def test_every_outcome_has_words() -> None:
    entries = [replace(ENTRY, outcome=outcome) for outcome in Outcome]
    assert len({one.what for one in timeline(entries, State(), {})}) == len(Outcome)


def test_what_is_under_way_comes_last() -> None:
    state = State(Phase.FETCHING, ONE, "r2", attempt=2)
    last = timeline([ENTRY], state, {})[-1]
    assert (last.at, last.what, last.rollout, last.why) == (None, "is fetching light 1", "r2", "")
    assert "restarted 2 times" in timeline([], replace(state, wakes=2), {})[-1].why
    failed = replace(state, phase=Phase.REPORTED, outcome=Outcome.FAILED, reason="full", wakes=2)
    assert timeline([], failed, {})[-1].why == "full"


@pytest.mark.parametrize(
    ("key", "release", "what"),
    [
        ("stuck/r1", ONE.digest, "was ordered back from light 1"),
        ("kept/r1", ONE.digest, "was ordered back from light 1"),
        ("damage/ab/2026-06-01", ONE.digest, "found damage in light 1"),
        ("damage/ab/2026-06-01", "", "found damage in the slots"),
        ("attempt/7", ONE.digest, "could not install light 1"),
    ],
)
def test_what_is_no_outcome_of_an_update_has_words_of_its_own(
    key: str, release: str, what: str
) -> None:
    entry = replace(ENTRY, key=key, outcome=Outcome.FAILED, release=release, reason="so")
    (found,) = timeline([entry], State(), {ONE.digest: ONE})
    assert found.what == what
    assert "goes on; " in found.then


def test_what_went_wrong_is_told_with_what_stays_and_what_to_do() -> None:
    for outcome in Outcome:
        (found,) = timeline([replace(ENTRY, outcome=outcome, reason="so")], State(), {})
        assert (";" in found.then) == (outcome is not Outcome.COMMITTED)

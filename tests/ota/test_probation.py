"""What a look at a release on probation means."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device_fakes import NOON, manifest

from wildflower.ota.device.machine import Abandoned, Done, Event, Failed
from wildflower.ota.device.probation import deadline, decide
from wildflower.ota.device.report import Outcome

BUDGET = replace(manifest().trial, probation_s=3600)
DEADLINE = timedelta(hours=4, days=1)
SECOND = timedelta(seconds=1)
SICK = Failed(Outcome.ROLLED_BACK, "on probation: it smokes")
LATE = Abandoned("no decision on probation in time: found 3599 healthy seconds, expected 3600")

LOOKS: dict[str, tuple[timedelta, float, str, Event | None]] = {
    "just begun": (timedelta(), 0.0, "", None),
    "almost": (timedelta(hours=1), 3599.0, "", None),
    "healthy for long enough": (timedelta(hours=1), 3600.0, "", Done()),
    "by a clock that stands still": (timedelta(), 3600.0, "", Done()),
    "off for a night": (timedelta(hours=14), 10.0, "", None),
    "a moment before the deadline": (DEADLINE - SECOND, 3599.0, "", None),
    "at the deadline": (DEADLINE, 3599.0, "", LATE),
    "in 2040": (timedelta(days=5000), 3599.0, "", LATE),
    "in 2040, but it had its time": (timedelta(days=5000), 3600.0, "", Done()),
    "in 1970": (-timedelta(days=20_000), 10.0, "", None),
    "ill": (timedelta(), 0.0, "it smokes", SICK),
    "ill at the last moment": (timedelta(hours=1), 3600.0, "it smokes", SICK),
    "ill and late": (DEADLINE, 0.0, "it smokes", SICK),
}


@pytest.mark.parametrize(("after", "healthy_s", "ailment", "event"), LOOKS.values(), ids=LOOKS)
def test_a_look_means(
    after: timedelta, healthy_s: float, ailment: str, event: Event | None
) -> None:
    now = NOON + after
    found = decide(BUDGET, since=NOON, now=now, healthy_s=healthy_s, ailment=ailment)
    assert found == event


@given(st.integers(0, 30 * 86_400), st.floats(0, 1e9), st.timedeltas(max_value=SECOND * 10**9))
def test_a_release_never_stays_without_having_been_healthy_for_its_time(
    window: int, healthy_s: float, after: timedelta
) -> None:
    budget = replace(BUDGET, probation_s=window)
    now = NOON + max(after, -timedelta(days=200_000))
    found = decide(budget, since=NOON, now=now, healthy_s=healthy_s, ailment="")
    assert isinstance(found, Done) == (healthy_s >= window)
    if now >= deadline(budget, NOON):
        assert found is not None

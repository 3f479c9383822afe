"""When a device fetches: a table of rules and conditions, and the window's laws."""

from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.device.conditions import (
    Conditions,
    Metered,
    Rules,
    Verdict,
    Window,
    decide,
)
from wildflower.ota.errors import FormatError

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
NIGHT = Window(time(22, 30), time(6))
DEAR = Conditions(metered=True)


@pytest.mark.parametrize(
    ("rules", "conditions", "verdict", "reason"),
    [
        (Rules(), DEAR, Verdict.ALL, ""),
        (Rules(Metered.DELTA), Conditions(), Verdict.ALL, ""),
        (Rules(Metered.DELTA), DEAR, Verdict.SMALL, "no whole model"),
        (Rules(Metered.NEVER), DEAR, Verdict.NOTHING, "nothing is fetched"),
        (Rules(Metered.NEVER), Conditions(), Verdict.ALL, ""),
        (Rules(battery_min=40), Conditions(), Verdict.ALL, ""),
        (Rules(battery_min=40), Conditions(battery_percent=40), Verdict.ALL, ""),
        (Rules(battery_min=40), Conditions(battery_percent=39), Verdict.NOTHING, "found 39 %"),
        (Rules(battery_min=40), Conditions(battery_percent=1, charging=True), Verdict.ALL, ""),
        (Rules(window=NIGHT), Conditions(), Verdict.NOTHING, "2026-06-01T22:30:00"),
        (Rules(window=Window(time(11), time(13))), Conditions(), Verdict.ALL, ""),
        (Rules(Metered.DELTA, 40), Conditions(True, 10), Verdict.NOTHING, "battery"),
        (Rules(Metered.NEVER, 40, NIGHT), Conditions(True, 10), Verdict.NOTHING, "window"),
    ],
)
def test_what_the_owner_allows_is_held_against_how_things_are(
    rules: Rules, conditions: Conditions, verdict: Verdict, reason: str
) -> None:
    found = decide(rules, conditions, NOON)
    assert found.verdict is verdict
    assert reason in found.reason
    assert bool(found.reason) is (verdict is not Verdict.ALL)


@pytest.mark.parametrize(
    ("rules", "small", "whole"),
    [
        (Rules(), True, True),
        (Rules(Metered.DELTA), True, False),
        (Rules(Metered.NEVER), False, False),
    ],
)
def test_a_whole_model_is_more_than_a_small_file(rules: Rules, small: bool, whole: bool) -> None:
    answer = decide(rules, DEAR, NOON)
    assert answer.permits(whole_model=False) is small
    assert answer.permits(whole_model=True) is whole


def test_the_window_is_the_owners_clock_and_not_utc() -> None:
    tokyo = NOON.astimezone(timezone(timedelta(hours=9)))  # 21:00 there
    rules = Rules(window=Window(time(21), time(22)))
    assert decide(rules, Conditions(), tokyo).verdict is Verdict.ALL
    assert decide(rules, Conditions(), NOON).until == datetime(2026, 6, 1, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "1:00-2:00", "01:00-24:00", "01:60-02:00", "01:00-01:00", "x"]
)
def test_a_text_that_names_no_window_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="HH:MM-HH:MM"):
        Window.parse(text)


def test_a_window_over_midnight_is_parsed() -> None:
    assert Window.parse("22:30-06:00") == NIGHT
    held = [hour for hour in range(24) if NIGHT.holds(NOON.replace(hour=hour))]
    assert held == [0, 1, 2, 3, 4, 5, 23]


minutes = st.times().map(lambda at: at.replace(second=0, microsecond=0, tzinfo=None))


@given(
    start=minutes,
    end=minutes,
    day=st.integers(0, 5000),
    at=st.timedeltas(timedelta(), timedelta(days=1)),
)
def test_who_waits_until_it_opens_finds_it_open(
    start: time, end: time, day: int, at: timedelta
) -> None:
    if start == end:
        return
    window, now = Window(start, end), NOON + timedelta(days=day) + at
    opens = window.opens(now)
    assert now <= opens <= now + timedelta(days=1)
    assert window.holds(opens)
    assert not window.holds(now.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0))


@given(st.text(max_size=20))
def test_noise_is_refused_or_a_window(text: str) -> None:
    try:
        window = Window.parse(text)
    except FormatError:
        return
    assert f"{window.start:%H:%M}-{window.end:%H:%M}" == text

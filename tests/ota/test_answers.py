"""Headers of servers that are not trusted."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wildflower.ota.release.answers import LONGEST_HEADER, ContentRange, retry_after_s

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "bytes 9-5/10", "bytes 5-10/10", "bytes */10", "items 5-9/10", "bytes 5-9",
     "bytes \u0665-\u0669/10",
     "bytes 5-9/10, bytes 1-2/10", "bytes -5-9/10", f"bytes {'9' * 20}-{'9' * 20}/*"],
)  # fmt: skip
def test_a_range_that_makes_no_sense_is_none(text: str) -> None:
    assert ContentRange.of(text) is None


@pytest.mark.parametrize(
    ("text", "is_rest"),
    [
        ("bytes 5-9/10", True),
        ("bytes 5-9/*", True),
        ("bytes 5-7/10", True),
        ("bytes 4-9/10", False),
        ("bytes 6-9/10", False),
        ("bytes 5-9/11", False),
        ("bytes 5-10/*", False),
    ],
)
def test_what_is_appended_begins_where_the_part_ends(text: str, is_rest: bool) -> None:
    found = ContentRange.of(text)
    assert found is not None
    assert found.is_rest(5, 10) is is_rest


@given(first=st.integers(0, 10**12), more=st.integers(0, 10**6), rest=st.integers(1, 10**6))
def test_a_range_is_read_as_it_was_written(first: int, more: int, rest: int) -> None:
    last, total = first + more, first + more + rest
    assert ContentRange.of(f"bytes {first}-{last}/{total}") == ContentRange(first, last, total)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("Mon, 01 Jun 2026 12:01:00 GMT", 60.0),
        ("Mon, 01 Jun 2026 12:01:00 -0000", 60.0),
        ("Mon, 01 Jun 2026 11:00:00 GMT", 0.0),
        ("Mon, 01 Jun 99999999999 12:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("\u0663", 0.0),
        ("9" * (LONGEST_HEADER + 1), 0.0),
    ],
)
def test_a_time_to_come_back_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert retry_after_s(text, NOW) == seconds


@given(
    st.text(max_size=LONGEST_HEADER + 5)
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,12} [A-Z][a-z]{2} \d{1,12} \d+:\d+:\d+ [+-]?\d{1,9}")
)
@example("Wed, 21 Oct 2015 07:28:00 -0000")
def test_nothing_in_a_header_raises(text: str) -> None:
    assert retry_after_s(text, NOW) >= 0.0
    ContentRange.of(text)


@given(st.integers(-(10**9), 10**9), st.integers(-23, 23))
def test_dates_of_any_zone_are_understood(seconds: int, hours: int) -> None:
    told = (NOW + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=hours)))
    expected = max(0.0, float(seconds))
    assert retry_after_s(told.strftime("%a, %d %b %Y %H:%M:%S %z"), NOW) == expected

"""Device reports: bytes that are signed, and what is read from others."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_fakes import NOON

from wildflower.ota import canonical
from wildflower.ota.device.report import KIND, MAX_REASON, DeviceReport, Outcome
from wildflower.ota.errors import FormatError

REPORT = DeviceReport(
    device_id="ab" * 32,
    sequence=7,
    outcome=Outcome.ROLLED_BACK,
    rollout="r1",
    release="cd" * 32,
    running="ef" * 32,
    reason="golden outputs differ by 0.5, allowed 0.001",
    at=NOON,
)
TEXTS = st.text(max_size=40)


def test_the_signed_bytes_are_these() -> None:
    assert REPORT.to_bytes() == (
        b'{"at":"2026-06-01T12:00:00.000000Z","device_id":"' + b"ab" * 32 + b'","format":1,'
        b'"kind":"wildflower.device-report","outcome":"rolled-back",'
        b'"reason":"golden outputs differ by 0.5, allowed 0.001","release":"' + b"cd" * 32 + b'",'
        b'"rollout":"r1","running":"' + b"ef" * 32 + b'","sequence":7}'
    )


@settings(max_examples=50)
@given(
    st.builds(
        DeviceReport,
        device_id=TEXTS,
        sequence=st.integers(0, 2**53 - 1),
        outcome=st.sampled_from(Outcome),
        rollout=TEXTS,
        release=TEXTS,
        running=TEXTS,
        reason=TEXTS,
        at=st.just(NOON),
    )
)
def test_a_report_that_is_written_and_read_is_the_same(report: DeviceReport) -> None:
    assert DeviceReport.from_bytes(report.to_bytes()) == report


def body(**changes: Any) -> bytes:
    return canonical.to_bytes(canonical.from_bytes(REPORT.to_bytes(), kind=KIND) | changes)


def test_a_long_reason_is_cut_on_both_sides() -> None:
    assert len(DeviceReport.from_bytes(body(reason="x" * 9000)).reason) == MAX_REASON


@pytest.mark.parametrize(
    "data",
    [body(outcome="fine"), body(sequence="one"), body(at="noon"), body(kind="other"), b"\xff"],
)
def test_what_is_no_report_is_told(data: bytes) -> None:
    with pytest.raises(FormatError):
        DeviceReport.from_bytes(data)


@settings(max_examples=100)
@given(st.integers(0, 500), st.binary(min_size=1, max_size=3))
def test_a_damaged_report_is_an_error_or_a_report(place: int, noise: bytes) -> None:
    data = REPORT.to_bytes()
    place %= len(data)
    try:
        found = DeviceReport.from_bytes(data[:place] + noise + data[place + len(noise) :])
    except FormatError:
        return
    assert isinstance(found, DeviceReport)

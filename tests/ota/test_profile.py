"""What a device is, and which class it belongs to."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_fakes import self_report

from wildflower.ota import canonical
from wildflower.ota.device.profile import CLASSES, KIND, SelfReport, classify
from wildflower.ota.errors import FormatError, IncompatibleError

TEXTS = st.text(max_size=20)
REPORTS = st.builds(
    SelfReport,
    machine=TEXTS,
    cpu_flags=st.lists(TEXTS, max_size=4).map(tuple),
    ram_bytes=st.integers(0, 2**53 - 1),
    disk_bytes=st.integers(0, 2**53 - 1),
    agent=TEXTS,
    runtimes=st.dictionaries(TEXTS, TEXTS, max_size=3),
    wanted_class=TEXTS,
)
GIVEN: dict[str, tuple[dict[str, Any], str]] = {
    "vnni": ({"cpu_flags": ("avx2", "avx512_vnni")}, "linux-x86_64-vnni"),
    "the other vnni": ({"cpu_flags": ("avx_vnni",)}, "linux-x86_64-vnni"),
    "avx2": ({"cpu_flags": ("avx2", "sse")}, "linux-x86_64-avx2"),
    "old": ({"cpu_flags": ("sse",)}, "linux-generic"),
    "arm": ({"machine": "aarch64", "cpu_flags": ("avx2",)}, "linux-generic"),
    "asks for less": (
        {"cpu_flags": ("avx2",), "wanted_class": "linux-generic"},
        "linux-generic",
    ),
}


@settings(max_examples=50)
@given(REPORTS)
def test_a_report_that_is_written_and_read_is_the_same(report: SelfReport) -> None:
    assert SelfReport.from_bytes(report.to_bytes()) == report


@pytest.mark.parametrize(("changes", "expected"), GIVEN.values(), ids=GIVEN)
def test_a_device_gets_the_most_specific_class_that_fits(
    changes: dict[str, Any], expected: str
) -> None:
    assert classify(self_report(**changes)).name == expected


def test_a_class_that_does_not_fit_is_refused_with_found_and_expected() -> None:
    report = self_report(wanted_class="linux-x86_64-vnni")
    with pytest.raises(IncompatibleError, match=r"demands x86_64 .*vnni.*, the device reports"):
        classify(report)


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(IncompatibleError, match="unknown device class 'toaster'") as told:
        classify(self_report(wanted_class="toaster"))
    assert "linux-generic" in told.value.hint


def test_every_class_fits_a_device_that_has_it_all() -> None:
    flags = tuple(flag for known in CLASSES.values() for flag in known.any_flag)
    assert all(known.fits(self_report(cpu_flags=flags)) for known in CLASSES.values())


def body(**changes: Any) -> bytes:
    found = canonical.from_bytes(self_report().to_bytes(), kind=KIND)
    return canonical.to_bytes(found | changes)


@pytest.mark.parametrize(
    "data",
    [
        body(machine=5),
        body(machine="x" * 201),
        body(cpu_flags=None),
        body(ram_bytes="much"),
        body(runtimes=["onnxruntime"]),
        body(kind="other"),
        b"",
    ],
)
def test_what_is_no_report_is_told(data: bytes) -> None:
    with pytest.raises(FormatError):
        SelfReport.from_bytes(data)


@settings(max_examples=100)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_report_is_an_error_or_a_report(place: int, noise: bytes) -> None:
    data = body()
    place %= len(data)
    try:
        found = SelfReport.from_bytes(data[:place] + noise + data[place + len(noise) :])
    except FormatError:
        return
    assert replace(found) == found

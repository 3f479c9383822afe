"""Gates: what passes, what must fail, and a report that cannot lie about itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.build.gates import (
    KIND,
    Bound,
    Budgets,
    Evidence,
    GateReport,
    GateResult,
    Measurement,
    Precision,
    Verdict,
    gate,
    judge,
)
from wildflower.ota.errors import FormatError, GateError

GOOD = Measurement(
    rows=250,
    error=3e-6,
    agreement=0.996,
    correct=243,
    reference_correct=244,
    size=66_000,
    reference_size=228_000,
    latency_ms=0.041,
    rss_bytes=66_000_000,
)
GOLDEN = Path(__file__).parents[1] / "goldens" / "gate-report.json"


def report(
    found: Measurement = GOOD,
    precision: Precision = Precision.INT8,
    *,
    is_target_cpu: bool = True,
) -> GateReport:
    return GateReport(
        artifact="ab" * 32,
        model="cd" * 32,
        device_class="linux-x86_64-vnni",
        recipe="int8",
        results=judge(found, Budgets(), precision, is_target_cpu=is_target_cpu),
        toolchain={"onnxruntime": "1.32.0"},
    )


@pytest.mark.parametrize("precision", Precision)
def test_a_good_artifact_passes(precision: Precision) -> None:
    is_int8 = precision is Precision.INT8
    good = report(GOOD if is_int8 else replace(GOOD, size=240_000), precision)
    assert (good.passed, good.failures) == (True, ())


MUST_FAIL = {
    "LSTM that the quantiser left alone": (Precision.INT8, {"size": 227_000}, "size"),
    "u8s8 weights on a CPU without VNNI": (Precision.INT8, {"agreement": 0.96}, "parity"),
    "accuracy down by 6.4 points": (Precision.INT8, {"correct": 228}, "accuracy"),
    "accuracy down by more than a point": (Precision.INT8, {"correct": 241}, "accuracy"),
    "bfloat16 where fp32 was asked for": (Precision.FP32, {"error": 0.05}, "parity"),
    "coded steps that tip two answers": (Precision.CODED, {"agreement": 0.992}, "parity"),
    "coded steps that double the file": (Precision.CODED, {"size": 456_000}, "size"),
    "a format that doubles the file": (Precision.FP32, {"size": 456_000}, "size"),
    "a model that takes a minute": (Precision.FP32, {"latency_ms": 60_000.0}, "latency"),
}


@pytest.mark.parametrize(("precision", "flaw", "name"), MUST_FAIL.values(), ids=MUST_FAIL)
def test_artifacts_that_must_fail_do(precision: Precision, flaw: dict[str, Any], name: str) -> None:
    bad = report(replace(GOOD, **flaw), precision)
    failed = [one.gate for one in bad.results if one.verdict is Verdict.FAILED]
    assert (bad.passed, failed) == (False, [name])
    assert len(bad.failures) == 1
    assert bad.failures[0].startswith(f"{name} is ")


def test_a_budget_is_met_by_the_value_that_equals_it() -> None:
    assert gate("x", 0.98, Bound.AT_LEAST, 0.98).verdict is Verdict.PASSED
    assert gate("x", 0.45, Bound.AT_MOST, 0.45).verdict is Verdict.PASSED
    assert gate("x", 0.451, Bound.AT_MOST, 0.45).verdict is Verdict.FAILED


def test_accuracy_is_compared_on_the_same_rows_and_says_how_many() -> None:
    accuracy = report().results[2]
    assert (accuracy.value, accuracy.n) == (1 / 250, 250)
    assert GOOD.accuracy == 243 / 250


def test_an_artifact_that_is_better_than_its_reference_passes() -> None:
    assert report(replace(GOOD, correct=250)).passed


def test_the_formats_own_bytes_do_not_fail_a_tiny_net() -> None:
    tiny = replace(GOOD, size=5_726, reference_size=10_092)
    assert report(tiny).passed
    assert not report(replace(tiny, size=9_000)).passed


def test_one_answer_out_of_few_is_no_verdict_but_two_are() -> None:
    few = replace(GOOD, rows=90, agreement=0.989, reference_correct=80)
    assert report(replace(few, correct=79)).passed
    assert not report(replace(few, correct=78)).passed


def test_an_estimate_informs_and_never_decides() -> None:
    slow = report(replace(GOOD, latency_ms=900.0), is_target_cpu=False)
    latency = slow.results[3]
    assert (latency.kind, latency.verdict) == (Evidence.ESTIMATED, Verdict.FAILED)
    assert slow.passed


def test_what_nobody_measured_is_unknown_and_never_zero() -> None:
    latency = report(replace(GOOD, latency_ms=None)).results[3]
    assert latency == GateResult(
        "latency", None, Bound.AT_MOST, 50.0, Verdict.UNKNOWN, Evidence.NOT_MEASURED
    )
    assert report(replace(GOOD, latency_ms=None)).passed


@pytest.mark.parametrize("missing", ["parity", "size", "accuracy"])
def test_nothing_passes_without_the_gates_that_every_host_can_measure(missing: str) -> None:
    whole = report()
    part = replace(whole, results=tuple(one for one in whole.results if one.gate != missing))
    assert (part.passed, part.failures) == (False, (f"{missing} was not measured",))


@pytest.mark.parametrize(
    "flaw", [{"error": float("nan")}, {"rows": 0}, {"reference_size": 0}], ids=str
)
def test_what_cannot_be_compared_is_an_error_and_no_verdict(flaw: dict[str, Any]) -> None:
    with pytest.raises(GateError):
        judge(replace(GOOD, **flaw), Budgets(), Precision.FP32, is_target_cpu=True)


@given(
    st.builds(
        Measurement,
        rows=st.integers(1, 1000),
        error=st.floats(0, 1),
        agreement=st.floats(0, 1),
        correct=st.integers(0, 1000),
        reference_correct=st.integers(0, 1000),
        size=st.integers(1, 10**9),
        reference_size=st.integers(1, 10**9),
        latency_ms=st.none() | st.floats(0, 1e4),
        rss_bytes=st.integers(0, 10**10),
    ),
    st.sampled_from(Precision),
    st.booleans(),
)
@settings(max_examples=60)
def test_a_report_comes_back_and_says_the_same(
    found: Measurement, precision: Precision, is_target_cpu: bool
) -> None:
    written = report(found, precision, is_target_cpu=is_target_cpu)
    assert GateReport.from_bytes(written.to_bytes()) == written
    assert written.digest == canonical.digest(written.to_bytes())
    assert written.passed is not bool(written.failures)


PARITY = {
    "gate": "parity",
    "value": 0.996,
    "bound": "at-least",
    "budget": 0.98,
    "verdict": "passed",
    "kind": "measured",
    "n": 250,
}


@pytest.mark.parametrize(
    "change",
    [
        {"passed": False},
        {"passed": 1},
        {"results": [], "passed": True},
        {"results": [PARITY | {"value": 0.5}]},
        {"results": [PARITY | {"verdict": "failed"}]},
        {"results": [PARITY | {"kind": "hoped"}]},
        {"results": [PARITY | {"value": None}]},
        {"results": [PARITY | {"bound": "around"}]},
        {"results": [PARITY | {"n": "many"}]},
        {"results": [PARITY | {"note": "trust me"}]},
        {"results": [{"gate": "parity"}]},
        {"results": [PARITY, PARITY], "passed": False},
        {"results": [3]},
        {"toolchain": []},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_report_that_contradicts_itself_is_no_report(change: dict[str, object]) -> None:
    document = canonical.from_bytes(report().to_bytes(), kind=KIND) | change
    with pytest.raises(FormatError):
        GateReport.from_bytes(canonical.to_bytes(document))


def test_a_report_that_lacks_a_key_is_no_report() -> None:
    document = canonical.from_bytes(report().to_bytes(), kind=KIND)
    for name in {*document} - {"kind", "format"}:
        rest = {key: value for key, value in document.items() if key != name}
        with pytest.raises(FormatError):
            GateReport.from_bytes(canonical.to_bytes(rest))


@given(st.binary(min_size=1, max_size=30), st.integers(0, 800))
@settings(max_examples=80)
def test_damaged_reports_never_pass_where_the_whole_one_failed(noise: bytes, at: int) -> None:
    data = report(replace(GOOD, correct=200)).to_bytes()
    at %= len(data)
    for damaged in (noise, data[:at], data[:at] + noise + data[at + len(noise) :]):
        try:
            found = GateReport.from_bytes(damaged)
        except FormatError:
            continue
        assert not found.passed


def test_the_document_stays_what_was_signed(update_goldens: bool) -> None:
    if update_goldens:
        GOLDEN.write_bytes(report().to_bytes())
    assert report().to_bytes() == GOLDEN.read_bytes()
    assert GateReport.from_bytes(GOLDEN.read_bytes()) == report()

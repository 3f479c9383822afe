"""What an artifact must show before it may be signed, judged without any I/O.

Every gate is one number against one budget. A number says how it was come by: *measured* on the
class of CPU that will run it, *estimated* elsewhere, or *not-measured*, never written as 0.
A report passes if every measured gate passed and the gates that need no special hardware were all
measured; an estimate informs and never decides.

Comparisons of accuracy are paired: the same rows through both models, n stated, because two runs
on different rows differ by half a point from noise alone.

    GateReport.from_bytes(report.to_bytes()) == report

A report that contradicts itself (a verdict that its own value does not give, "passed" beside a
failed gate) is not a report: the release signer reads these bytes and believes nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Any, Final, Self, assert_never

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, GateError

KIND: Final = "wildflower.gate-report"
REQUIRED: Final = ("parity", "size", "accuracy")
"""Gates that every host can measure; without them nothing passes."""


@unique
class Precision(StrEnum):
    """What the weights of an artifact are."""

    FP32 = "fp32"
    CODED = "fp32-coded"
    """fp32, made of the last release and whole steps (`ota.delta.fp32`)."""
    INT8 = "int8"


@unique
class Verdict(StrEnum):
    """What became of one gate."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@unique
class Evidence(StrEnum):
    """How a value was come by."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    NOT_MEASURED = "not-measured"


@unique
class Bound(StrEnum):
    """Which side of its budget a value must lie on; both include the budget itself."""

    AT_MOST = "at-most"
    AT_LEAST = "at-least"


@dataclass(frozen=True, slots=True)
class Budgets:
    """What is demanded.

    Attributes:
        max_error: fp32: largest difference to PyTorch's outputs, relative to the largest of them
            where that exceeds 1.
        min_agreement_coded: fp32, coded: share of rows whose most likely class is PyTorch's, in
            [0, 1]; a single row is always allowed, because two classes may be as likely.
        min_agreement: int8: share of rows whose most likely class is PyTorch's, in [0, 1].
        max_size_int8: Size over that of the fp32 ONNX file; nets below 100,000 parameters reach
            0.29 to 0.42, larger ones 0.26.
        max_size_fp32: The same for fp32 in another format; `.ort` adds 3 to 20 %.
        fixed_bytes: What the format's own nodes and tables may take beyond that, in bytes: it does
            not shrink with the net, and outweighs the weights of the smallest.
        max_accuracy_drop: Accuracy lost on the same rows, in [0, 1]; a single row is always
            allowed, because fewer than 100 rows cannot tell one percent.
        max_latency_ms: Median time of one inference on one thread.
    """

    max_error: float = 1e-4
    min_agreement_coded: float = 0.997
    min_agreement: float = 0.98
    max_size_int8: float = 0.45
    max_size_fp32: float = 1.5
    fixed_bytes: float = 4096.0
    max_accuracy_drop: float = 0.01
    max_latency_ms: float = 50.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was found out about one artifact.

    Attributes:
        rows: Number of examples it was run on.
        error: Largest difference to PyTorch's outputs, as in `Budgets.max_error`.
        agreement: Share of rows whose most likely class is PyTorch's.
        correct: Rows it answered right.
        reference_correct: Rows that PyTorch answered right.
        size: Bytes of its file.
        reference_size: Bytes of the fp32 ONNX file.
        latency_ms: Median time of one inference on one thread; None if nobody measured it.
        rss_bytes: Peak resident memory of a process that loads and runs it.
    """

    rows: int
    error: float
    agreement: float
    correct: int
    reference_correct: int
    size: int
    reference_size: int
    latency_ms: float | None
    rss_bytes: int

    @property
    def accuracy(self) -> float:
        """Share of rows it answered right, in [0, 1]."""
        return self.correct / self.rows


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate.

    Attributes:
        gate: Its name.
        value: What was found; None if it was not measured.
        bound: Which side of the budget the value must lie on.
        budget: What is demanded.
        verdict: What became of it.
        kind: How the value was come by.
        n: Number of examples behind the value; 0 where it does not count examples.
    """

    gate: str
    value: float | None
    bound: Bound
    budget: float
    verdict: Verdict
    kind: Evidence
    n: int = 0


def gate(
    name: str,
    value: float | None,
    bound: Bound,
    budget: float,
    *,
    kind: Evidence = Evidence.MEASURED,
    n: int = 0,
) -> GateResult:
    """Return the judged gate.

    Raises:
        GateError: The value or the budget is NaN or infinite, so there is nothing to compare.
    """
    if value is None:
        return GateResult(name, None, bound, budget, Verdict.UNKNOWN, Evidence.NOT_MEASURED, n)
    if not (math.isfinite(value) and math.isfinite(budget)):
        raise GateError(f"gate {name}: {value} cannot be compared with the budget {budget}")
    return GateResult(name, value, bound, budget, _verdict(value, bound, budget), kind, n)


def judge(
    found: Measurement, budgets: Budgets, precision: Precision, *, is_target_cpu: bool
) -> tuple[GateResult, ...]:
    """Judge an artifact.

    Args:
        found: What was measured.
        budgets: What is demanded.
        precision: What its weights are.
        is_target_cpu: Whether the latency was measured on a CPU of the device class.

    Raises:
        GateError: A value is not finite, or there were no rows.
    """
    if found.rows < 1 or found.reference_size < 1:
        raise GateError(f"{found.rows} rows and {found.reference_size} bytes to compare with")
    drop = (found.reference_correct - found.correct) / found.rows
    ratio = found.size / found.reference_size
    latency_kind = Evidence.MEASURED if is_target_cpu else Evidence.ESTIMATED
    match precision:
        case Precision.FP32:
            value, bound, demand = found.error, Bound.AT_MOST, budgets.max_error
            size = budgets.max_size_fp32
        case Precision.CODED:
            demand = min(budgets.min_agreement_coded, 1 - 1 / found.rows)
            value, bound, size = found.agreement, Bound.AT_LEAST, budgets.max_size_fp32
        case Precision.INT8:
            value, bound, demand = found.agreement, Bound.AT_LEAST, budgets.min_agreement
            size = budgets.max_size_int8
        case _:
            assert_never(precision)
    size += budgets.fixed_bytes / found.reference_size
    may_drop = max(budgets.max_accuracy_drop, 1 / found.rows)
    return (
        gate("parity", value, bound, demand, n=found.rows),
        gate("size", ratio, Bound.AT_MOST, size),
        gate("accuracy", drop, Bound.AT_MOST, may_drop, n=found.rows),
        gate(
            "latency",
            found.latency_ms,
            Bound.AT_MOST,
            budgets.max_latency_ms,
            kind=latency_kind,
        ),
    )


@dataclass(frozen=True, slots=True)
class GateReport:
    """All gates of one artifact, the document that the release signer re-checks.

    Attributes:
        artifact: Digest of the file.
        model: Digest of the global model.
        device_class: The class it was built for.
        recipe: How it was built.
        results: The gates.
        toolchain: Version of everything that took part, by distribution name.
    """

    artifact: str
    model: str
    device_class: str
    recipe: str
    results: tuple[GateResult, ...]
    toolchain: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The report's name: the SHA-256 of its bytes."""
        return canonical.digest(self.to_bytes())

    @property
    def passed(self) -> bool:
        """Whether the artifact may be signed."""
        measured = [one for one in self.results if one.kind is Evidence.MEASURED]
        has_all = {*REQUIRED} <= {one.gate for one in measured}
        return has_all and all(one.verdict is Verdict.PASSED for one in measured)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it did not pass, one sentence a gate; empty if it passed."""
        measured = {one.gate: one for one in self.results if one.kind is Evidence.MEASURED}
        missing = [f"{name} was not measured" for name in REQUIRED if name not in measured]
        failed = [
            f"{one.gate} is {one.value:.4g}, must be {one.bound.replace('-', ' ')} {one.budget:.4g}"
            for one in measured.values()
            if one.verdict is Verdict.FAILED
        ]
        return (*missing, *failed)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "artifact": self.artifact,
                "model": self.model,
                "device_class": self.device_class,
                "recipe": self.recipe,
                "results": [_fields(one) for one in self.results],
                "passed": self.passed,
                "toolchain": dict(self.toolchain),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a report from outside.

        Raises:
            FormatError: Not a report, or one that contradicts itself.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            report = cls(
                artifact=str(document["artifact"]),
                model=str(document["model"]),
                device_class=str(document["device_class"]),
                recipe=str(document["recipe"]),
                results=tuple(_result(entry) for entry in document["results"]),
                toolchain={str(k): str(v) for k, v in document["toolchain"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, GateError) as error:
            raise FormatError(f"gate report: {error!r}") from error
        names = [one.gate for one in report.results]
        if document.get("passed") is not report.passed or len(names) != len(set(names)):
            raise FormatError("gate report: it contradicts its own results")
        return report


def _verdict(value: float, bound: Bound, budget: float) -> Verdict:
    holds = value <= budget if bound is Bound.AT_MOST else value >= budget
    return Verdict.PASSED if holds else Verdict.FAILED


def _fields(one: GateResult) -> dict[str, Any]:
    return {name: getattr(one, name) for name in GateResult.__slots__}


def _result(entry: Mapping[str, Any]) -> GateResult:
    """Parse one gate and judge it anew.

    Raises:
        ValueError: The verdict is not the one that the value gives.
    """
    value = entry["value"]
    judged = gate(
        str(entry["gate"]),
        None if value is None else float(value),
        Bound(entry["bound"]),
        float(entry["budget"]),
        kind=Evidence(entry["kind"]),
        n=int(entry["n"]),
    )
    if _fields(judged) != dict(entry):
        raise ValueError(f"gate {judged.gate}: its value gives {judged.verdict}, {judged.kind}")
    return judged

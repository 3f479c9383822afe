"""What the release signer is asked, and what it checks before it signs: values in, a verdict out.

The signer believes its own key, its own memory and digests, and nothing that the asking server
says. A release is signed if

1. the `models/auto` metadata it shall be added to carries this key's signature,
2. the order is above every order that this key has signed for the target group,
3. the gate report is the one the lineage names, passed (its verdicts are judged anew from its
   values), and speaks of this artifact, this model and this device class,
4. the round record names the same model, training and round as the lineage.

Each refusal begins with the name of the rule that was broken.
"""

from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.build.gates import GateReport
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.provenance import RoundRecord
from wildflower.server.errors import SignerError

KIND: Final = "wildflower.sign-request"
ROLE: Final = "auto"


@unique
class Rule(StrEnum):
    """What a request can break."""

    REQUEST = "malformed-request"
    METADATA = "wrong-metadata"
    ORDER = "order-not-greater"
    TARGET_GROUP = "wrong-target-group"
    GATE_REPORT = "wrong-gate-report"
    GATES_FAILED = "gates-failed"
    ROUND_RECORD = "wrong-round-record"

    def refusal(self, message: str) -> SignerError:
        """Return the error to raise."""
        return SignerError(f"{self.value}: {message}")


@dataclass(frozen=True, slots=True)
class SignRequest:
    """One release and the evidence for it, each as its canonical bytes.

    SignRequest.from_bytes(request.to_bytes()) == request
    """

    manifest: bytes = field(repr=False)
    gate_report: bytes = field(repr=False)
    round_record: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; the documents are text, as all our documents are."""
        return canonical.to_bytes(
            {"kind": KIND, "format": 1}
            | {name: getattr(self, name).decode() for name in self.__slots__}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a request from outside.

        Raises:
            SignerError: Not a request.
        """
        try:
            document = canonical.from_bytes(data, kind=KIND)
            return cls(*(document[name].encode() for name in cls.__slots__))
        except (FormatError, KeyError, AttributeError, UnicodeError) as error:
            raise Rule.REQUEST.refusal(repr(error)) from error


@dataclass(frozen=True, slots=True)
class Evidence:
    """A request whose documents have been parsed."""

    release: Release
    gate_report: GateReport
    round_record: RoundRecord

    @property
    def path(self) -> str:
        """Where the manifest will lie among the targets."""
        return target_path(ROLE, self.release.target_group, self.release.order)


def examined(request: SignRequest, newest_order: int) -> Evidence:
    """Check everything but the metadata.

    Args:
        request: What was asked.
        newest_order: Highest order that is signed for the release's target group; 0 for none.

    Returns:
        The parsed documents.

    Raises:
        SignerError: A rule is broken; the message begins with its name.
    """
    evidence = parsed(request)
    _check_order(evidence.release, newest_order)
    _check_gates(evidence.release, evidence.gate_report)
    _check_round(evidence.release, evidence.round_record)
    return evidence


def parsed(request: SignRequest) -> Evidence:
    """Parse the three documents.

    Raises:
        SignerError: One of them is not what it should be.
    """
    try:
        release = Release.from_bytes(request.manifest)
    except FormatError as error:
        raise Rule.REQUEST.refusal(str(error)) from error
    try:
        report = GateReport.from_bytes(request.gate_report)
    except FormatError as error:
        raise Rule.GATE_REPORT.refusal(str(error)) from error
    try:
        record = RoundRecord.from_bytes(request.round_record)
    except FormatError as error:
        raise Rule.ROUND_RECORD.refusal(str(error)) from error
    return Evidence(release, report, record)


def _check_order(release: Release, newest_order: int) -> None:
    if release.order <= newest_order:
        raise Rule.ORDER.refusal(
            f"{release.target_group} has order {newest_order}, asked for {release.order}"
        )
    expected = f"{release.model_name}.{release.requires.device_class}"
    if release.target_group != expected:
        raise Rule.TARGET_GROUP.refusal(f"found {release.target_group}, expected {expected}")


def _check_gates(release: Release, report: GateReport) -> None:
    claims = (
        ("gate report", release.lineage.gate_report, report.digest),
        ("artifact", release.artifact.digest, report.artifact),
        ("model", release.lineage.model, report.model),
        ("device class", release.requires.device_class, report.device_class),
    )
    for name, expected, found in claims:
        if expected != found:
            raise Rule.GATE_REPORT.refusal(f"{name} {found}, the manifest names {expected}")
    if not report.passed:
        raise Rule.GATES_FAILED.refusal("; ".join(report.failures))


def _check_round(release: Release, record: RoundRecord) -> None:
    lineage = release.lineage
    claims = (
        ("model", lineage.model, record.model),
        ("training", lineage.training, record.training),
        ("round", lineage.round_number, record.number),
    )
    for name, expected, found in claims:
        if expected != found:
            raise Rule.ROUND_RECORD.refusal(f"{name} {found}, the manifest names {expected}")

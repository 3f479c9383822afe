"""Where a release came from, in the form that tools outside know: an in-toto statement, signed.

    statement = Provenance.of(release, record, toolchain)       # what the release signer attests
    envelope = sign_statement(statement, signers)               # DSSE, beside the manifest
    found = open_statement(envelope, keys)                      # anybody, with the public keys
    found.check(release)                                        # ... and it is of this release

The statement is in-toto Statement v1, its predicate SLSA provenance v1 with a build type of ours:
a federated round. It holds counts, never ids of devices. It lets others see how the model was made
without knowing our documents, and a device's owner say which models are accepted
(`ota.device.acceptance`): there TUF vouches for its bytes, as it does for the manifest's.

    Provenance.from_bytes(provenance.to_bytes()) == provenance

Sources: in-toto attestation framework 1.1, SLSA 1.0 (provenance), DSSE 1.0.2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error
from securesystemslib.signer import Key, Signer

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, RefusedError
from wildflower.ota.release.manifest import HEX_DIGEST, Release
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "https://wildflower.readthedocs.io/build-types/federated-round/v1"
BUILDER: Final = "https://wildflower.readthedocs.io/builders/release-signer"
MAX_NAME: Final = 200  # characters of a training's id; ours have 16
MAX_ENVELOPE: Final = 200_000  # bytes; a statement of three files has about 2000


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a release was made.

    Attributes:
        files: SHA-256 of each file of the release, by name.
        manifest: Digest of the release's manifest.
        model: Digest of the global model that it was built from.
        training: Id of the training.
        round_number: Number of the round in it.
        cohort: Devices that were invited.
        survivors: Devices whose updates are in the model.
        secure: Whether their sum was a secure aggregation.
        privacy: What the training has spent, such as epsilon and delta; empty without a guarantee.
        toolchain: Versions of what built the artifact, by name.
        gate_report: Digest of the gates' report.
        round_record: Digest of the round record.
        at: When the round was recorded.
        method: How the round made the model; None in statements that do not tell.
    """

    files: Mapping[str, str]
    manifest: str
    model: str
    training: str
    round_number: int
    cohort: int
    survivors: int
    secure: bool
    privacy: Mapping[str, float]
    toolchain: Mapping[str, str]
    gate_report: str
    round_record: str
    at: datetime
    method: Method | None = None

    @classmethod
    def of(
        cls,
        release: Release,
        record: RoundRecord,
        toolchain: Mapping[str, str],
        privacy: Mapping[str, float] | None = None,
    ) -> Self:
        """Return the provenance of a release that a round made."""
        return cls(
            files={entry.name: entry.digest for entry in release.files},
            manifest=release.digest,
            model=record.model,
            training=record.training,
            round_number=record.number,
            cohort=record.cohort,
            survivors=record.survivors,
            secure=record.secure,
            privacy=dict(privacy or {}),
            toolchain=dict(toolchain),
            gate_report=release.lineage.gate_report,
            round_record=record.digest,
            at=record.at,
            method=record.method,
        )

    def taken_over(self, release: Release) -> Self:
        """Return the provenance of another release of the same model, as people sign it anew.

        Raises:
            RefusedError: It is of another model, training or round.
        """
        same = self.files.get(release.artifact.name) == release.artifact.digest
        moved = replace(
            self,
            files={entry.name: entry.digest for entry in release.files},
            manifest=release.digest,
            toolchain=self.toolchain if same else {},  # of a file that is built anew it says none
            gate_report=release.lineage.gate_report,
        )
        moved.check(release)
        return moved

    def __str__(self) -> str:
        """Return it in a line, for people who decide: nothing in it can look like another line."""
        counts = f"{self.survivors} of {self.cohort} devices"
        known = [name for name in ("epsilon", "delta") if name in self.privacy]
        spent = ", ".join(f"{name} {self.privacy[name]:g}" for name in known)
        method = str(self.method or "no method told")
        return (
            f"round {self.training}/{self.round_number}, {method}, {counts}, "
            f"{spent or 'no privacy told'}"
        )

    def check(self, release: Release) -> None:
        """Check that it is of this very release.

        Raises:
            RefusedError: It is of another.
        """
        lineage = release.lineage
        files = sorted((entry.name, entry.digest) for entry in release.files)
        claims = (
            ("manifest", release.digest, self.manifest),
            ("files", str(files), str(sorted(self.files.items()))),
            ("model", lineage.model, self.model),
            ("training", lineage.training, self.training),
            ("round", str(lineage.round_number), str(self.round_number)),
            ("gate report", lineage.gate_report, self.gate_report),
        )
        for what, expected, found in claims:
            if expected != found:
                raise RefusedError(f"provenance of another {what}: found {found[:80]}")

    def to_bytes(self) -> bytes:
        """Return the statement's canonical bytes."""
        return canonical.to_bytes(
            {
                "_type": STATEMENT,
                "subject": [
                    {"name": name, "digest": {"sha256": digest}}
                    for name, digest in sorted(self.files.items())
                ],
                "predicateType": PREDICATE,
                "predicate": {
                    "buildDefinition": self._definition(),
                    "runDetails": {
                        "builder": {"id": BUILDER, "version": dict(self.toolchain)},
                        "metadata": {
                            "invocationId": f"{self.training}/{self.round_number}",
                            "finishedOn": canonical.to_time(self.at),
                        },
                        "byproducts": [
                            _named("manifest", self.manifest),
                            _named("gate-report", self.gate_report),
                            _named("round-record", self.round_record),
                        ],
                    },
                },
            }
        )

    def _definition(self) -> dict[str, Any]:
        told = {} if self.method is None else {"method": self.method.to_document()}
        return {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "training": self.training,
                "round": self.round_number,
                "cohort": self.cohort,
                "survivors": self.survivors,
                "secureAggregation": self.secure,
                "privacy": dict(self.privacy),
                **told,
            },
            "resolvedDependencies": [_named("global-model", self.model)],
        }

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a statement from outside; whoever signed it is another question.

        Raises:
            FormatError: Not such a statement, or a value is out of its range.
        """
        if len(data) > MAX_ENVELOPE:
            raise FormatError(f"provenance: {len(data)} bytes, at most {MAX_ENVELOPE} are read")
        try:
            found = cls(**_parsed(json.loads(data)))
            same = found.to_bytes() == data
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FormatError(f"provenance: {error!r}") from error
        except (RecursionError, OverflowError) as error:
            raise FormatError(f"provenance: {type(error).__name__}") from error
        if not same:
            raise FormatError("provenance: fields or values that it should not have")
        found._check_ranges()
        return found

    def _check_ranges(self) -> None:
        digests = (self.manifest, self.model, self.round_record, *self.files.values())
        if not self.files or not all(HEX_DIGEST.fullmatch(digest) for digest in digests):
            raise FormatError("provenance: a digest is none")
        if self.round_number < 1 or not 1 <= self.survivors <= self.cohort:
            raise FormatError(
                f"provenance: round {self.round_number}, {self.survivors} of {self.cohort}"
            )
        if len(self.training) > MAX_NAME or not self.training.isprintable():
            raise FormatError(f"provenance: {self.training[:80]!r} is no training's id")
        if min(self.privacy.values(), default=0.0) < 0:
            raise FormatError(f"provenance: found {dict(self.privacy)} of privacy, expected >= 0")


def sign_statement(provenance: Provenance, signers: Sequence[Signer]) -> bytes:
    """Return the DSSE envelope of a statement, as JSON."""
    return _signed(Envelope(provenance.to_bytes(), PAYLOAD_TYPE, {}), signers)


def cosign_statement(data: bytes, signers: Sequence[Signer]) -> bytes:
    """Return an envelope with signatures more; what is signed stays as it is.

    Raises:
        FormatError: Not an envelope with a statement.
    """
    return _signed(_envelope(data), signers)


def open_statement(data: bytes, keys: Sequence[Key], threshold: int = 1) -> Provenance:
    """Verify an envelope and return what it says.

    Args:
        data: The envelope.
        keys: Keys whose signatures count.
        threshold: How many of them must have signed.

    Raises:
        FormatError: Not an envelope with such a statement.
        RefusedError: Too few of the keys have signed.
    """
    envelope = _envelope(data)
    try:
        envelope.verify(list(keys), threshold)
    except (ValueError, Error) as error:
        raise RefusedError(f"provenance: wrong signature: {error}") from error
    return Provenance.from_bytes(envelope.payload)


def read_statement(data: bytes) -> Provenance:
    """Return what an envelope says whose bytes somebody else has vouched for, such as TUF.

    Raises:
        FormatError: Not an envelope with such a statement.
    """
    return Provenance.from_bytes(_envelope(data).payload)


def _signed(envelope: Envelope, signers: Sequence[Signer]) -> bytes:
    for signer in signers:
        envelope.sign(signer)
    return canonical.to_bytes(envelope.to_dict())


def _envelope(data: bytes) -> Envelope:
    if len(data) > MAX_ENVELOPE:
        raise FormatError(f"provenance: {len(data)} bytes, at most {MAX_ENVELOPE} are read")
    try:
        envelope = Envelope.from_dict(json.loads(data))
        kind = envelope.payload_type
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
        raise FormatError(f"provenance: no DSSE envelope: {error!r}") from error
    if kind != PAYLOAD_TYPE:
        raise FormatError(f"provenance: expected {PAYLOAD_TYPE}, found {str(kind)[:80]!r}")
    return envelope


def statement_path(manifest_path: str) -> str:
    """Return where the envelope lies among the TUF targets, beside its release's manifest.

    Example:
        >>> statement_path("models/auto/digits.linux-generic/3.json")
        'models/auto/digits.linux-generic/3.provenance.json'
    """
    return f"{manifest_path.removesuffix('.json')}.provenance.json"


def _parsed(statement: Any) -> dict[str, Any]:
    """Return the fields of a provenance; `to_bytes` of them tells whether anything else is there.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: It is another document.
    """
    definition = statement["predicate"]["buildDefinition"]
    details = statement["predicate"]["runDetails"]
    asked = definition["externalParameters"]
    manifest, gates, record = (one["digest"]["sha256"] for one in details["byproducts"])
    [model] = (one["digest"]["sha256"] for one in definition["resolvedDependencies"])
    return {
        "files": {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]},
        "manifest": str(manifest),
        "model": str(model),
        "training": str(asked["training"]),
        "round_number": int(asked["round"]),
        "cohort": int(asked["cohort"]),
        "survivors": int(asked["survivors"]),
        "secure": bool(asked["secureAggregation"]),
        "privacy": {str(name): float(value) for name, value in asked["privacy"].items()},
        "toolchain": {str(k): str(v) for k, v in details["builder"]["version"].items()},
        "gate_report": str(gates),
        "round_record": str(record),
        "at": canonical.from_time(details["metadata"]["finishedOn"]),
        "method": Method.from_document(asked["method"]) if "method" in asked else None,
    }


def _named(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}

"""Records of a small fleet, its releases and reports, for tests of the server."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from wildflower.ota.release.manifest import (
    FileEntry,
    Lineage,
    Release,
    Requirement,
    TrialBudget,
    target_path,
)
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.rollout.document import Order, RolloutDocument
from wildflower.server.errors import NotFoundError, SignerError
from wildflower.server.records import Artifact, Device, Model, ReleaseRecord, Report

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
AVX2 = "linux-x86_64-avx2"
GENERIC = "linux-generic"


@dataclass
class SetClock:
    """A clock that tests set."""

    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment

    def pass_by(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class FakePublisher:
    """Signs everything, and remembers what was published.

    Attributes:
        documents: Rollout documents, in order of publication.
        releases: Manifests, in order of publication.
        records: Records of the rounds that made automatic ones.
        statements: What lies beside approved manifests, by their path.
        refusal: What the signer says instead of signing; "" signs.
    """

    documents: list[RolloutDocument] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    statements: dict[str, bytes] = field(default_factory=dict)
    refusal: str = ""

    def rollout(self, document: RolloutDocument) -> None:
        self._may()
        self.documents.append(document)

    def release(self, manifest: Release, *, gate_report: bytes, round_record: bytes) -> str:
        self._may()
        assert gate_report
        self.records.append(RoundRecord.from_bytes(round_record))
        self.releases.append(manifest)
        return target_path("auto", manifest.target_group, manifest.order)

    def approved(self, metadata: bytes, manifest: Release, statement: bytes = b"") -> str:
        self._may()
        self.releases.append(manifest)
        path = target_path("approved", manifest.target_group, manifest.order)
        self.statements[path] = statement
        return path

    def statement(self, path: str) -> bytes:
        return self.statements[path]

    def current(self, role: str) -> bytes:
        if role != "models/approved":
            raise NotFoundError(f"there is no role {role}")
        return b'{"signed":{}}'

    def orders(self) -> list[tuple[str, Order, int]]:
        """Return group, order and permille of what was published."""
        return [(one.target_group, one.order, one.permille) for one in self.documents]

    def _may(self) -> None:
        if self.refusal:
            raise SignerError(self.refusal)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def device(name: str, **fields: object) -> Device:
    known: dict[str, object] = {
        "device_id": digest_of(name),
        "name": name,
        "public_key": "",
        "certificate": "",
        "device_class": AVX2,
        "ring": "default",
        "node_id": 7,
        "self_report": b"",
        "enrolled_at": NOW,
        "last_seen": NOW,
    }
    return Device(**(known | fields))  # type: ignore[arg-type]  # fields by name


def model(name: str = "model", **fields: object) -> Model:
    known: dict[str, object] = {
        "digest": digest_of(name),
        "name": "digits",
        "app": "task:digits",
        "training_id": "training-1",
        "round_number": 1,
        "metrics": {},
        "created_at": NOW,
    }
    return Model(**(known | fields))  # type: ignore[arg-type]  # fields by name


def artifact(name: str, **fields: object) -> Artifact:
    known: dict[str, object] = {
        "digest": digest_of(name),
        "model": digest_of("model"),
        "device_class": AVX2,
        "recipe": "int8",
        "file_name": "model.onnx",
        "length": 10,
        "gate_report": digest_of(f"gates of {name}"),
        "passed": True,
        "created_at": NOW,
    }
    return Artifact(**(known | fields))  # type: ignore[arg-type]  # fields by name


def release(name: str, **fields: object) -> ReleaseRecord:
    device_class = str(fields.get("device_class", AVX2))
    known: dict[str, object] = {
        "digest": digest_of(name),
        "path": f"models/auto/digits.{device_class}/1.json",
        "role": "auto",
        "model_name": "digits",
        "target_group": f"digits.{device_class}",
        "device_class": device_class,
        "order": 1,
        "artifact": digest_of("artifact"),
        "model": digest_of("model"),
        "created_at": NOW,
    }
    return ReleaseRecord(**(known | fields))  # type: ignore[arg-type]  # fields by name


def report(of: Device, outcome: str, sequence: int = 1, **fields: object) -> Report:
    known: dict[str, object] = {
        "report_id": f"{of.device_id}/{sequence}",
        "device_id": of.device_id,
        "sequence": sequence,
        "outcome": outcome,
        "rollout": "",
        "release": "",
        "running": "",
        "reason": "",
        "document": b"",
        "signature": b"",
        "received_at": NOW,
    }
    return Report(**(known | fields))  # type: ignore[arg-type]  # fields by name


def manifest(order: int = 1, group: str = f"digits.{AVX2}") -> Release:
    return Release(
        model_name="digits",
        target_group=group,
        order=order,
        files=(FileEntry("model", "model.onnx", digest_of("model file"), 10),),
        requires=Requirement(AVX2, "onnxruntime", "1.20", "2", 17, "0.1", 1, 1),
        trial=TrialBudget(1e-3, 0.98, 50.0, 2**28),
        lineage=Lineage(digest_of("model"), "training-1", 1, digest_of("gates")),
        not_before=NOW,
    )

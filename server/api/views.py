"""What the operator API answers: plain values that server and commands share.

A command parses the server's JSON into the very class the server made it from, so the two cannot
drift apart. Records (`server.records`) stay inside; what is told of them is decided here. Standard
library only: commands run where no server is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from wildflower.server import records

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Page(Generic[V]):
    """Part of a list.

    Attributes:
        items: In order of creation.
        next: Cursor of the page that follows; "" if this is the last.
    """

    items: list[V]
    next: str = ""


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One supervised process of the server."""

    name: str
    pid: int
    state: str
    restarts: int


@dataclass(frozen=True, slots=True)
class StatusView:
    """How the server is.

    Attributes:
        ready: Whether all listeners and processes are up.
        version: Of the server.
        profile: Who holds which keys.
        started_at: When it started.
        listeners: Where it listens, by the setting's name.
        processes: Its children.
        devices: Enrolled and not revoked.
        connected: Of them, connected now.
        training: Id of the training that runs; "" for none.
        last_event: Number of the latest event; follow from here to see only what is new.
    """

    ready: bool
    version: str
    profile: str
    started_at: datetime
    listeners: dict[str, str]
    processes: list[ProcessView]
    devices: int
    connected: int
    training: str
    last_event: int


@dataclass(frozen=True, slots=True)
class InvitationView:
    """A join token, shown once."""

    token: str
    ring: str
    uses: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceView:
    """An enrolled device."""

    name: str
    device_id: str
    device_class: str
    ring: str
    connected: bool
    running: str
    holds: str
    last_outcome: str
    last_reason: str
    last_seen: datetime
    enrolled_at: datetime
    revoked: bool


@dataclass(frozen=True, slots=True)
class TrainingView:
    """A training.

    Attributes:
        training_id: Its id.
        app: What is learned.
        phase: "planned", "running", "finished" or "aborted".
        rounds: How many were asked for.
        recorded: How many are recorded.
        secure: Whether sums are secure aggregations.
        model: Digest of the latest recorded model; "" before the first.
        metrics: What is known of that model.
        reason: Why it was aborted.
        created_at: When it was asked for.
        finished_at: When it ended.
    """

    training_id: str
    app: str
    phase: str
    rounds: int
    recorded: int
    secure: bool
    model: str
    metrics: dict[str, float]
    reason: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round."""

    training_id: str
    number: int
    phase: str
    cohort: list[str]
    survivors: list[str]
    model: str
    metrics: dict[str, float]
    reason: str
    started_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, record: records.Round) -> "RoundView":
        """Return what is told of a round."""
        return cls(
            training_id=record.training_id,
            number=record.number,
            phase=record.phase,
            cohort=list(record.cohort),
            survivors=list(record.survivors),
            model=record.model,
            metrics=dict(record.metrics),
            reason=record.reason,
            started_at=record.started_at,
            finished_at=record.finished_at,
        )


@dataclass(frozen=True, slots=True)
class ModelView:
    """A global model."""

    digest: str
    name: str
    app: str
    training_id: str
    round_number: int
    metrics: dict[str, float]
    created_at: datetime

    @classmethod
    def of(cls, record: records.Model) -> "ModelView":
        """Return what is told of a model."""
        return cls(
            digest=record.digest,
            name=record.name,
            app=record.app,
            training_id=record.training_id,
            round_number=record.round_number,
            metrics=dict(record.metrics),
            created_at=record.created_at,
        )


@dataclass(frozen=True, slots=True)
class ArtifactView:
    """What was built from a model for a device class."""

    digest: str
    model: str
    device_class: str
    recipe: str
    file_name: str
    length: int
    gate_report: str
    passed: bool

    @classmethod
    def of(cls, record: records.Artifact) -> "ArtifactView":
        """Return what is told of an artifact."""
        return cls(
            digest=record.digest,
            model=record.model,
            device_class=record.device_class,
            recipe=record.recipe,
            file_name=record.file_name,
            length=record.length,
            gate_report=record.gate_report,
            passed=record.passed,
        )


@dataclass(frozen=True, slots=True)
class GateLine:
    """One gate of a report."""

    gate: str
    value: float | None
    bound: str
    budget: float
    verdict: str
    kind: str
    n: int


@dataclass(frozen=True, slots=True)
class GateView:
    """A gate report."""

    gate_report: str
    artifact: str
    model: str
    device_class: str
    recipe: str
    passed: bool
    results: list[GateLine]
    toolchain: dict[str, str]


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """A published release."""

    digest: str
    target_group: str
    order: int
    role: str
    path: str
    device_class: str
    artifact: str
    model: str
    created_at: datetime

    @classmethod
    def of(cls, record: records.ReleaseRecord) -> "ReleaseView":
        """Return what is told of a release."""
        return cls(
            digest=record.digest,
            target_group=record.target_group,
            order=record.order,
            role=record.role,
            path=record.path,
            device_class=record.device_class,
            artifact=record.artifact,
            model=record.model,
            created_at=record.created_at,
        )


@dataclass(frozen=True, slots=True)
class LineView:
    """One model's way through the release line."""

    model: str
    phase: str
    reason: str
    artifacts: list[ArtifactView]
    releases: list[ReleaseView]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One target group in a rollout.

    Attributes:
        target_group: Its name.
        release: Digest of the release it gets.
        reach: Devices that the current stage admits.
        committed: Devices that signed to run it.
        failed: Devices that rolled it back, or could not install it.
        incompatible: Devices that it does not fit.
    """

    target_group: str
    release: str
    reach: int
    committed: int
    failed: int
    incompatible: int


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout."""

    rollout_id: str
    phase: str
    stage: int
    permille: int
    stages: list[int]
    reason: str
    groups: list[GroupView]
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class SummaryView:
    """How an artifact does on the fleet; None where nothing is known."""

    artifact: str
    devices: int
    n: int
    latency_p95_ms: float | None
    error_rate: float | None
    confidence: float | None
    labelled: int
    accuracy: float | None
    dropped: int
    ignored: int


@dataclass(frozen=True, slots=True)
class BlobView:
    """A stored file."""

    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class EventView:
    """Something that happened."""

    number: int
    kind: str
    subject: str
    fields: Mapping[str, str | int | float | bool]
    at: datetime

    @classmethod
    def of(cls, record: records.Event) -> "EventView":
        """Return what is told of an event."""
        return cls(record.number, record.kind, record.subject, dict(record.fields), record.at)

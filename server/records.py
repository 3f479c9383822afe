"""What the server remembers, as plain values: tables stop at the store, these travel inwards.

Times are UTC. A digest is a SHA-256 in hex; a device id is the SHA-256 of the key's
SubjectPublicKeyInfo. `state` fields hold a machine's stored form; only its shell reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Leave to enrol. The secret itself is never stored, only its digest."""

    KEY: ClassVar[str] = "token_id"
    token_id: str
    secret_digest: str
    expires_at: datetime
    uses_left: int
    ring: str


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device.

    Attributes:
        device_id: SHA-256 of its public key, hex.
        name: What people call it.
        public_key: SubjectPublicKeyInfo, PEM.
        certificate: The client certificate, PEM.
        device_class: Name of its class.
        ring: The group of devices it belongs to in rollouts.
        node_id: Its Flower node id; 0 until the SuperLink has registered it.
        self_report: What it last said of itself (`ota.device.profile`), canonical bytes.
        enrolled_at: When it enrolled.
        last_seen: When it was last heard of.
        running: Digest of the artifact it last signed to be running; "" for none.
        revoked: Whether it may no longer connect.
    """

    KEY: ClassVar[str] = "device_id"
    device_id: str
    name: str
    public_key: str
    certificate: str
    device_class: str
    ring: str
    node_id: int
    self_report: bytes = field(repr=False)
    enrolled_at: datetime
    last_seen: datetime
    running: str = ""
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Training:
    """Rounds 1..n of one task.

    Attributes:
        training_id: Its id.
        app: Where the Flower app or task comes from: `module:object` or a file.
        rounds: How many rounds were asked for.
        secure: Whether sums are secure aggregations.
        settings: What the rounds were started with (quorum, deadline, epochs ...).
        phase: "planned", "running", "finished" or "aborted".
        reason: Why it was aborted, in a sentence.
        run_id: Flower run of its latest start; 0 before the first.
        created_at: When it was asked for.
        finished_at: When it ended.
    """

    KEY: ClassVar[str] = "training_id"
    training_id: str
    app: str
    rounds: int
    secure: bool
    settings: Mapping[str, float | str]
    phase: str
    reason: str
    run_id: int
    created_at: datetime
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a training. Its key is "<training id>/<number>"."""

    KEY: ClassVar[str] = "round_id"
    round_id: str
    training_id: str
    number: int
    phase: str
    reason: str
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    model: str
    metrics: Mapping[str, float]
    state: bytes = field(repr=False)
    started_at: datetime
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A global model; its safetensors file is the blob of the same digest."""

    KEY: ClassVar[str] = "digest"
    digest: str
    name: str
    app: str
    training_id: str
    round_number: int
    metrics: Mapping[str, float]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was built from a model for a device class; the file is the blob of the same digest."""

    KEY: ClassVar[str] = "digest"
    digest: str
    model: str
    device_class: str
    recipe: str
    file_name: str
    length: int
    gate_report: str
    passed: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Line:
    """One model's way through the release line; the key is the model's digest."""

    KEY: ClassVar[str] = "model"
    model: str
    phase: str
    reason: str
    state: bytes = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A published release; the manifest is the blob of the same digest."""

    KEY: ClassVar[str] = "digest"
    digest: str
    path: str
    role: str
    model_name: str
    target_group: str
    device_class: str
    order: int
    artifact: str
    model: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout over one or more target groups."""

    KEY: ClassVar[str] = "rollout_id"
    rollout_id: str
    releases: tuple[str, ...]
    phase: str
    reason: str
    state: bytes = field(repr=False)
    created_at: datetime
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A signed device report as it came. Its key is "<device id>/<sequence>"."""

    KEY: ClassVar[str] = "report_id"
    report_id: str
    device_id: str
    sequence: int
    outcome: str
    rollout: str
    release: str
    running: str
    reason: str
    document: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    received_at: datetime


@dataclass(frozen=True, slots=True)
class StoredSummary:
    """A monitoring summary as it came. Its key is "<device id>/<stream>/<sequence>"."""

    KEY: ClassVar[str] = "summary_id"
    summary_id: str
    device_id: str
    stream: str
    sequence: int
    artifact: str
    baseline: str
    payload: bytes = field(repr=False)
    received_at: datetime


@dataclass(frozen=True, slots=True)
class PrivacyEntry:
    """A release that the privacy ledger holds; `server.ledger` knows it as a `strategies` value.

    Attributes:
        entry_id: Of the release; for a round its id.
        purpose: "training", "telemetry" or "calibration".
        unit: "device" or "example".
        relation: "add-remove" or "replace".
        delta: At which its epsilon is told.
        event: What was released, the flat form of `strategies.dp.events`.
        cohort: How many took part.
        population: How many could have.
        subject: What it belongs to, such as a training's id.
        at: When it was written, before its noise was released.
    """

    KEY: ClassVar[str] = "entry_id"
    entry_id: str
    purpose: str
    unit: str
    relation: str
    delta: float
    event: Mapping[str, str | int | float]
    cohort: int
    population: int
    subject: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for those who wait and for those who ask later.

    Attributes:
        number: Position in the log, from 1; 0 before it is stored.
        kind: Such as "round.recorded"; see `server.events`.
        subject: Id of what it happened to.
        fields: Details, plain values only.
        at: When.
    """

    KEY: ClassVar[str] = "number"
    number: int
    kind: str
    subject: str
    fields: Mapping[str, str | int | float | bool]
    at: datetime


Record = (
    JoinToken
    | Device
    | Training
    | Round
    | Model
    | Artifact
    | Line
    | ReleaseRecord
    | Rollout
    | Report
    | StoredSummary
    | PrivacyEntry
)
"""Everything that has a key of its own; events are numbered by the store."""

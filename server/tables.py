"""The tables of the SQL store, one per kind of record; nothing but `server.sql` sees them.

A column has the name of the field it holds, so that rows and records map by name alone. What is
asked for by value (`Store.all`) is indexed. `position` keeps the order of insertion: replacing a
record leaves its row, and so its position, where it was.

Structures are JSON text, not a JSON column type: equality and round trip are then the same in
every database. `migrations/` makes these tables; a test compares the two.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from wildflower.server import records

BIG_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite numbers rows by itself in an INTEGER PRIMARY KEY only."""


GIVEN: Final = {"autoincrement": False}


class Moment(sa.TypeDecorator[datetime]):
    """A point in time; UTC goes in, UTC comes out, whatever the database does with zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Return the moment in UTC, the only zone that SQLite's text comparisons order rightly."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a moment without a zone: {value}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Return the moment with its zone, which SQLite does not keep."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Unsigned(sa.TypeDecorator[int]):
    """A number of 64 bits without sign, as Flower's node and run ids are, in a signed column."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, _: sa.Dialect) -> int | None:
        """Return the signed number with the same bits."""
        return None if value is None else value - 2**64 if value >= 2**63 else value

    def process_result_value(self, value: int | None, _: sa.Dialect) -> int | None:
        """Return the number that was stored."""
        return None if value is None else value % 2**64


class Words(sa.TypeDecorator[tuple[str, ...]]):
    """A tuple of texts."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, _: sa.Dialect) -> str | None:
        """Return the texts as one JSON list."""
        return None if value is None else json.dumps(list(value))

    def process_result_value(self, value: Any, _: sa.Dialect) -> tuple[str, ...] | None:
        """Return the tuple that was stored."""
        return None if value is None else tuple(json.loads(value))


class Plain(sa.TypeDecorator[Mapping[str, Any]]):
    """A mapping of names to plain values."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, Any] | None, _: sa.Dialect) -> str | None:
        """Return one JSON object; sorted, so that equal mappings are equal text."""
        return None if value is None else json.dumps(dict(value), sort_keys=True)

    def process_result_value(self, value: Any, _: sa.Dialect) -> Mapping[str, Any] | None:
        """Return the mapping that was stored."""
        return None if value is None else dict(json.loads(value))


NAMES: Final = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraints have names, so that later migrations can speak of them in every database."""
REGISTRY: Final = registry(metadata=sa.MetaData(naming_convention=NAMES))


class Ours(SQLModel, registry=REGISTRY):
    """A registry of our own: tables that other packages give to SQLModel are not ours."""


class Stored(Ours):
    """What every table of records has."""

    position: int | None = Field(default=None, primary_key=True, sa_type=BIG_KEY)


def _moment(*, nullable: bool = False) -> Any:
    return Field(default=None, sa_type=Moment, nullable=nullable)


def _number() -> Any:
    return Field(sa_type=sa.BigInteger)


class TokenRow(Stored, table=True):
    """A join token."""

    __tablename__ = "join_token"
    token_id: str = Field(unique=True)
    secret_digest: str
    expires_at: datetime = _moment()
    uses_left: int = _number()
    ring: str


class DeviceRow(Stored, table=True):
    """An enrolled device."""

    __tablename__ = "device"
    device_id: str = Field(unique=True)
    name: str
    public_key: str
    certificate: str
    device_class: str = Field(index=True)
    ring: str = Field(index=True)
    node_id: int = Field(sa_type=Unsigned, index=True)
    self_report: bytes
    enrolled_at: datetime = _moment()
    last_seen: datetime = _moment()
    running: str = Field(index=True)
    revoked: bool


class TrainingRow(Stored, table=True):
    """A training."""

    __tablename__ = "training"
    training_id: str = Field(unique=True)
    app: str
    rounds: int = _number()
    secure: bool
    settings: str = Field(sa_type=Plain)
    phase: str = Field(index=True)
    reason: str
    run_id: int = Field(sa_type=Unsigned)
    created_at: datetime = _moment()
    finished_at: datetime | None = _moment(nullable=True)


class RoundRow(Stored, table=True):
    """A round of a training."""

    __tablename__ = "round"
    round_id: str = Field(unique=True)
    training_id: str = Field(index=True)
    number: int = _number()
    phase: str = Field(index=True)
    reason: str
    cohort: str = Field(sa_type=Words)
    survivors: str = Field(sa_type=Words)
    model: str = Field(index=True)
    metrics: str = Field(sa_type=Plain)
    state: bytes
    started_at: datetime = _moment()
    finished_at: datetime | None = _moment(nullable=True)


class ModelRow(Stored, table=True):
    """A global model."""

    __tablename__ = "model"
    digest: str = Field(unique=True)
    name: str = Field(index=True)
    app: str
    training_id: str = Field(index=True)
    round_number: int = _number()
    metrics: str = Field(sa_type=Plain)
    created_at: datetime = _moment()


class ArtifactRow(Stored, table=True):
    """What was built from a model."""

    __tablename__ = "artifact"
    digest: str = Field(unique=True)
    model: str = Field(index=True)
    device_class: str = Field(index=True)
    recipe: str
    file_name: str
    length: int = _number()
    gate_report: str = Field(index=True)
    passed: bool
    created_at: datetime = _moment()


class LineRow(Stored, table=True):
    """A model's way through the release line."""

    __tablename__ = "line"
    model: str = Field(unique=True)
    phase: str = Field(index=True)
    reason: str
    state: bytes
    created_at: datetime = _moment()


class ReleaseRow(Stored, table=True):
    """A published release."""

    __tablename__ = "release"
    digest: str = Field(unique=True)
    path: str
    role: str
    model_name: str = Field(index=True)
    target_group: str = Field(index=True)
    device_class: str = Field(index=True)
    order: int = _number()
    artifact: str = Field(index=True)
    model: str = Field(index=True)
    created_at: datetime = _moment()


class RolloutRow(Stored, table=True):
    """A rollout."""

    __tablename__ = "rollout"
    rollout_id: str = Field(unique=True)
    releases: str = Field(sa_type=Words)
    phase: str = Field(index=True)
    reason: str
    state: bytes
    created_at: datetime = _moment()
    finished_at: datetime | None = _moment(nullable=True)


class ReportRow(Stored, table=True):
    """A signed device report."""

    __tablename__ = "report"
    report_id: str = Field(unique=True)
    device_id: str = Field(index=True)
    sequence: int = _number()
    outcome: str
    rollout: str = Field(index=True)
    release: str = Field(index=True)
    running: str = Field(index=True)
    reason: str
    document: bytes
    signature: bytes
    received_at: datetime = _moment()


class SummaryRow(Stored, table=True):
    """A monitoring summary."""

    __tablename__ = "summary"
    summary_id: str = Field(unique=True)
    device_id: str = Field(index=True)
    stream: str
    sequence: int = _number()
    artifact: str = Field(index=True)
    baseline: str
    payload: bytes
    received_at: datetime = _moment()


class PrivacyRow(Stored, table=True):
    """A release that the privacy ledger holds."""

    __tablename__ = "privacy_entry"
    entry_id: str = Field(unique=True)
    purpose: str
    unit: str
    relation: str
    delta: float = Field(sa_type=sa.Double)
    event: str = Field(sa_type=Plain)
    cohort: int = _number()
    population: int = _number()
    subject: str = Field(index=True)
    at: datetime = _moment()


class EventRow(Ours, table=True):
    """An event; its number is given by the store, without gaps."""

    __tablename__ = "event"
    number: int = Field(primary_key=True, sa_type=BIG_KEY, sa_column_kwargs=GIVEN)
    kind: str
    subject: str
    fields: str = Field(sa_type=Plain)
    at: datetime = _moment()


METADATA: Final = REGISTRY.metadata
EVENTS: Final = METADATA.tables["event"]
TABLES: Final[Mapping[type, sa.Table]] = MappingProxyType(
    {
        records.JoinToken: METADATA.tables["join_token"],
        records.Device: METADATA.tables["device"],
        records.Training: METADATA.tables["training"],
        records.Round: METADATA.tables["round"],
        records.Model: METADATA.tables["model"],
        records.Artifact: METADATA.tables["artifact"],
        records.Line: METADATA.tables["line"],
        records.ReleaseRecord: METADATA.tables["release"],
        records.Rollout: METADATA.tables["rollout"],
        records.Report: METADATA.tables["report"],
        records.StoredSummary: METADATA.tables["summary"],
        records.PrivacyEntry: METADATA.tables["privacy_entry"],
    }
)

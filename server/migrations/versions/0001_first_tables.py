"""The first tables: tokens, devices, trainings, releases, rollouts, reports, summaries, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER = sa.BigInteger()
TEXT = sa.String()
STRUCTURE = sa.Text()
BYTES = sa.LargeBinary()
FLAG = sa.Boolean()
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _devices()
    _learning()
    _release()
    _event()


def downgrade() -> None:
    raise NotImplementedError("an empty database has no older version")


def _devices() -> None:
    op.create_table(
        "join_token",
        sa.Column("position", KEY),
        sa.Column("token_id", TEXT, nullable=False),
        sa.Column("secret_digest", TEXT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("uses_left", NUMBER, nullable=False),
        sa.Column("ring", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_join_token"),
        sa.UniqueConstraint("token_id", name="uq_join_token_token_id"),
    )
    op.create_table(
        "device",
        sa.Column("position", KEY),
        sa.Column("device_id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("public_key", TEXT, nullable=False),
        sa.Column("certificate", TEXT, nullable=False),
        sa.Column("device_class", TEXT, nullable=False),
        sa.Column("ring", TEXT, nullable=False),
        sa.Column("node_id", NUMBER, nullable=False),
        sa.Column("self_report", BYTES, nullable=False),
        sa.Column("enrolled_at", MOMENT, nullable=False),
        sa.Column("last_seen", MOMENT, nullable=False),
        sa.Column("running", TEXT, nullable=False),
        sa.Column("revoked", FLAG, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_device"),
        sa.UniqueConstraint("device_id", name="uq_device_device_id"),
    )
    for column in ("device_class", "ring", "node_id", "running"):
        op.create_index(f"ix_device_{column}", "device", [column])
    op.create_table(
        "report",
        sa.Column("position", KEY),
        sa.Column("report_id", TEXT, nullable=False),
        sa.Column("device_id", TEXT, nullable=False),
        sa.Column("sequence", NUMBER, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("rollout", TEXT, nullable=False),
        sa.Column("release", TEXT, nullable=False),
        sa.Column("running", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("document", BYTES, nullable=False),
        sa.Column("signature", BYTES, nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_report"),
        sa.UniqueConstraint("report_id", name="uq_report_report_id"),
    )
    for column in ("device_id", "rollout", "release", "running"):
        op.create_index(f"ix_report_{column}", "report", [column])
    op.create_table(
        "summary",
        sa.Column("position", KEY),
        sa.Column("summary_id", TEXT, nullable=False),
        sa.Column("device_id", TEXT, nullable=False),
        sa.Column("stream", TEXT, nullable=False),
        sa.Column("sequence", NUMBER, nullable=False),
        sa.Column("artifact", TEXT, nullable=False),
        sa.Column("baseline", TEXT, nullable=False),
        sa.Column("payload", BYTES, nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_summary"),
        sa.UniqueConstraint("summary_id", name="uq_summary_summary_id"),
    )
    for column in ("device_id", "artifact"):
        op.create_index(f"ix_summary_{column}", "summary", [column])


def _learning() -> None:
    op.create_table(
        "training",
        sa.Column("position", KEY),
        sa.Column("training_id", TEXT, nullable=False),
        sa.Column("app", TEXT, nullable=False),
        sa.Column("rounds", NUMBER, nullable=False),
        sa.Column("secure", FLAG, nullable=False),
        sa.Column("settings", STRUCTURE, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("run_id", NUMBER, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_training"),
        sa.UniqueConstraint("training_id", name="uq_training_training_id"),
    )
    op.create_index("ix_training_phase", "training", ["phase"])
    op.create_table(
        "round",
        sa.Column("position", KEY),
        sa.Column("round_id", TEXT, nullable=False),
        sa.Column("training_id", TEXT, nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("cohort", STRUCTURE, nullable=False),
        sa.Column("survivors", STRUCTURE, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("metrics", STRUCTURE, nullable=False),
        sa.Column("state", BYTES, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_round"),
        sa.UniqueConstraint("round_id", name="uq_round_round_id"),
    )
    for column in ("training_id", "phase", "model"):
        op.create_index(f"ix_round_{column}", "round", [column])
    op.create_table(
        "model",
        sa.Column("position", KEY),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("app", TEXT, nullable=False),
        sa.Column("training_id", TEXT, nullable=False),
        sa.Column("round_number", NUMBER, nullable=False),
        sa.Column("metrics", STRUCTURE, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_model"),
        sa.UniqueConstraint("digest", name="uq_model_digest"),
    )
    for column in ("name", "training_id"):
        op.create_index(f"ix_model_{column}", "model", [column])


def _release() -> None:
    op.create_table(
        "artifact",
        sa.Column("position", KEY),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("device_class", TEXT, nullable=False),
        sa.Column("recipe", TEXT, nullable=False),
        sa.Column("file_name", TEXT, nullable=False),
        sa.Column("length", NUMBER, nullable=False),
        sa.Column("gate_report", TEXT, nullable=False),
        sa.Column("passed", FLAG, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_artifact"),
        sa.UniqueConstraint("digest", name="uq_artifact_digest"),
    )
    for column in ("model", "device_class", "gate_report"):
        op.create_index(f"ix_artifact_{column}", "artifact", [column])
    op.create_table(
        "line",
        sa.Column("position", KEY),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("state", BYTES, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_line"),
        sa.UniqueConstraint("model", name="uq_line_model"),
    )
    op.create_index("ix_line_phase", "line", ["phase"])
    op.create_table(
        "release",
        sa.Column("position", KEY),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("model_name", TEXT, nullable=False),
        sa.Column("target_group", TEXT, nullable=False),
        sa.Column("device_class", TEXT, nullable=False),
        sa.Column("order", NUMBER, nullable=False),
        sa.Column("artifact", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_release"),
        sa.UniqueConstraint("digest", name="uq_release_digest"),
    )
    for column in ("model_name", "target_group", "device_class", "artifact", "model"):
        op.create_index(f"ix_release_{column}", "release", [column])
    op.create_table(
        "rollout",
        sa.Column("position", KEY),
        sa.Column("rollout_id", TEXT, nullable=False),
        sa.Column("releases", STRUCTURE, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("state", BYTES, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_rollout"),
        sa.UniqueConstraint("rollout_id", name="uq_rollout_rollout_id"),
    )
    op.create_index("ix_rollout_phase", "rollout", ["phase"])


def _event() -> None:
    op.create_table(
        "event",
        sa.Column("number", KEY, autoincrement=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("fields", STRUCTURE, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_event"),
    )

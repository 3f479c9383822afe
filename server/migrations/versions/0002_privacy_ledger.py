"""The privacy ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "privacy_entry",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("cohort", sa.BigInteger(), nullable=False),
        sa.Column("population", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_privacy_entry"),
        sa.UniqueConstraint("entry_id", name="uq_privacy_entry_entry_id"),
    )
    op.create_index("ix_privacy_entry_subject", "privacy_entry", ["subject"])


def downgrade() -> None:
    raise NotImplementedError("what was released stays released")

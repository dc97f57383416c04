"""The figures of replicas over their lives"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "samples",
        sa.Column("replica_id", sa.String(80), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("step_s", sa.Float(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("replica_id", "at", name=op.f("pk_samples")),
    )
    op.create_index(op.f("ix_samples_job_id"), "samples", ["job_id"])

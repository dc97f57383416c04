"""What routers metered"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meter_series",
        sa.Column("service_name", sa.String(length=40), nullable=False),
        sa.Column("life", sa.Float(), nullable=False),
        sa.Column("series", sa.String(length=64), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.Column("read_at", sa.Float(), nullable=False),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.Column("under_way", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", "life", "series", name=op.f("pk_meter_series")),
    )
    op.create_table(
        "meter_totals",
        sa.Column("service_name", sa.String(length=40), nullable=False),
        sa.Column("life", sa.Float(), nullable=False),
        sa.Column("series", sa.String(length=64), nullable=False),
        sa.Column("backend", sa.String(length=256), nullable=False),
        sa.Column("totals", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", "life", "series", "backend", name=op.f("pk_meter_totals")),
    )
    op.create_table(
        "busy_periods",
        sa.Column("service_name", sa.String(length=40), nullable=False),
        sa.Column("life", sa.Float(), nullable=False),
        sa.Column("backend", sa.String(length=256), nullable=False),
        sa.Column("start", sa.Float(), nullable=False),
        sa.Column("end", sa.Float(), nullable=False),
        sa.Column("peak", sa.Integer(), nullable=False),
        sa.Column("inflight_s", sa.Float(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", "life", "backend", "start", name=op.f("pk_busy_periods")),
    )

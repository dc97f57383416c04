"""Routers, what is seen of backends, and events of deployments"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "routers",
        sa.Column("service_name", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("is_tried", sa.Boolean(), nullable=False),
        sa.Column("is_ensured", sa.Boolean(), nullable=False),
        sa.Column("remote", sa.JSON(), nullable=True),
        sa.Column("replicas", sa.Integer(), nullable=True),
        sa.Column("seen", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("pushed", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["service_name"],
            ["deployments.service_name"],
            name=op.f("fk_routers_service_name"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("service_name", "name", name=op.f("pk_routers")),
    )
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("old_key_until", sa.Float(), nullable=True))
    with op.batch_alter_table("backends", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replicas", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("seen", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("service_name", sa.String(length=40), nullable=True))
        batch_op.create_index(batch_op.f("ix_events_service_name_seq"), ["service_name", "seq"], unique=False)

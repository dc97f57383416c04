"""Budgets of deployments"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("over_budget_at", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("over_budget_reason", sa.Text(), nullable=True))

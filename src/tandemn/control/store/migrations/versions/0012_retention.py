"""When files expire, and what of them is to go"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("expires_at", sa.Float(), nullable=True))
    op.add_column("files", sa.Column("hidden_at", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("purged_at", sa.Float(), nullable=True))

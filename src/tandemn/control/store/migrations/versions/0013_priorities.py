"""What jobs wait for; priorities have names"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("waits", sa.JSON(), nullable=True))
    jobs = sa.table("jobs", sa.column("job_id", sa.String()), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(jobs.c.job_id, jobs.c.spec)).all():
        number = spec.get("priority", 0)
        name = "normal" if number == 0 else "high" if number > 0 else "low"
        connection.execute(
            jobs.update().where(jobs.c.job_id == job_id).values(spec={**spec, "priority": name})
        )

"""The figures of every replica over its life, in a bounded number of samples (`control/series.py` decides which)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tandemn.control import series
from tandemn.control.store.schema import jobs, samples

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.records import ReplicaRecord
    from tandemn.protocol.replicas import Heartbeat


def add(
    connection: Connection,
    replica: ReplicaRecord,
    beat: Heartbeat,
    *,
    at: float,
    beat_s: float,
    is_last: bool = False,
) -> bool:
    """Keep what a replica said, where a sample is due; True: it was kept."""
    of_it = samples.c.replica_id == replica.replica_id
    columns = (func.count(), func.max(samples.c.at), func.max(samples.c.step_s))
    count, last_at, step_s = connection.execute(select(*columns).where(of_it)).one()
    standing = series.Standing(count=count, last_at=last_at, step_s=step_s) if count else None
    decided = series.keeps(standing, at=at, beat_s=beat_s, is_last=is_last)
    if decided is None:
        return False
    if decided.thins:
        moments = list(connection.scalars(select(samples.c.at).where(of_it).order_by(samples.c.at)))
        connection.execute(delete(samples).where(of_it, samples.c.at.in_(moments[1::2])))
        connection.execute(update(samples).where(of_it).values(step_s=decided.step_s))
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(samples).values(
        replica_id=replica.replica_id,
        at=at,
        job_id=replica.job_id,
        step_s=decided.step_s,
        figures=series.figures(beat),
    )
    connection.execute(statement.on_conflict_do_nothing(index_elements=["replica_id", "at"]))
    return True


def of_replica(connection: Connection, replica_id: str) -> tuple[float, list[tuple[float, dict[str, Any]]]]:
    """Return the step of a replica's series, and its samples, oldest first."""
    query = select(samples).where(samples.c.replica_id == replica_id).order_by(samples.c.at)
    rows = connection.execute(query).all()
    return (max((row.step_s for row in rows), default=0.0), [(row.at, row.figures) for row in rows])


def forget_ended(connection: Connection, *, before: float, limit: int) -> int:
    """Remove the samples of some jobs that ended before that moment; return of how many."""
    having = select(samples.c.job_id).where(samples.c.job_id == jobs.c.job_id).exists()
    query = select(jobs.c.job_id).where(jobs.c.ended_at < before, having).limit(limit)
    ended = list(connection.scalars(query))
    if ended:
        connection.execute(delete(samples).where(samples.c.job_id.in_(ended)))
    return len(ended)

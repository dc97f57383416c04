"""Replicas: their record, and what they last said."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select, update

from tandemn.control.store import events
from tandemn.control.store.records import ReplicaRecord, replica_record
from tandemn.control.store.schema import jobs, replicas
from tandemn.errors import NotFound
from tandemn.events import EventKind
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import ReplicaState

ENDED = tuple(state.value for state in ReplicaState if state.has_ended)


def request(
    connection: Connection,
    job_id: str,
    *,
    group: int,
    config: ReplicaConfig,
    launcher: str,
    count: int,
    now: float,
    reason: str,
    not_before: float = 0,
) -> list[str]:
    """Record the intent to run `count` more replicas; the reconciler launches them. Returns their ids."""
    first = connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id)
        .values(next_replica=jobs.c.next_replica + count)
        .returning(jobs.c.next_replica)
    ).scalar_one()
    ids = [f"{job_id}-r{number}" for number in range(first - count, first)]
    for replica_id in ids:
        connection.execute(
            replicas.insert().values(
                replica_id=replica_id,
                job_id=job_id,
                group=group,
                state=ReplicaState.PENDING.value,
                reason=reason,
                config=config.model_dump(mode="json"),
                launcher=launcher,
                created_at=now,
                not_before=not_before,
            )
        )
        events.append(
            connection,
            EventKind.REPLICA_REQUESTED,
            now=now,
            job_id=job_id,
            replica_id=replica_id,
            reason=reason,
            group=group,
            config=config.model_dump(mode="json"),
        )
    return ids


def get(connection: Connection, replica_id: str) -> ReplicaRecord:
    """Raises NotFound with code `replica_not_found`."""
    row = connection.execute(select(replicas).where(replicas.c.replica_id == replica_id)).first()
    if row is None:
        raise NotFound(
            f"no such replica: {replica_id}",
            code="replica_not_found",
            next_step="`tandemn status JOB` shows the job's replicas",
            object_id=replica_id,
        )
    return replica_record(row)


def of_job(connection: Connection, job_id: str) -> list[ReplicaRecord]:
    """Every replica that the job ever had, in the order in which they were requested."""
    query = select(replicas).where(replicas.c.job_id == job_id)
    rows = connection.execute(
        query.order_by(replicas.c.created_at, func.length(replicas.c.replica_id), replicas.c.replica_id)
    )
    return [replica_record(row) for row in rows]


def live(connection: Connection) -> list[ReplicaRecord]:
    """Every replica of every job that has not ended."""
    query = select(replicas).where(replicas.c.state.not_in(ENDED))
    return [replica_record(row) for row in connection.execute(query)]


def last_ended(connection: Connection, job_id: str) -> ReplicaRecord | None:
    """Return the replica of the job that ended last."""
    query = select(replicas).where(replicas.c.job_id == job_id, replicas.c.state.in_(ENDED))
    row = connection.execute(query.order_by(replicas.c.ended_at.desc()).limit(1)).first()
    return replica_record(row) if row is not None else None


def ended_since(connection: Connection, at: float) -> list[ReplicaRecord]:
    """Read every replica of every job that ended then or later."""
    return [
        replica_record(row) for row in connection.execute(select(replicas).where(replicas.c.ended_at >= at))
    ]


def others_run_on(connection: Connection, launcher: str, *, job_id: str) -> bool:
    """Whether another job has a replica there that was launched and has not ended."""
    query = select(replicas.c.replica_id).where(
        replicas.c.launcher == launcher,
        replicas.c.job_id != job_id,
        replicas.c.launched_at.is_not(None),
        replicas.c.state.not_in(ENDED),
    )
    return connection.execute(query.limit(1)).first() is not None


def live_jobs(connection: Connection) -> list[str]:
    """Name the jobs, ended ones too, of which a replica has not ended."""
    return list(
        connection.scalars(select(replicas.c.job_id).where(replicas.c.state.not_in(ENDED)).distinct())
    )


def change(connection: Connection, replica_id: str, /, **values: Any) -> bool:
    """Set columns of a replica that has not ended; False where it has."""
    return bool(
        connection.execute(
            update(replicas)
            .where(replicas.c.replica_id == replica_id, replicas.c.state.not_in(ENDED))
            .values(**values)
        ).rowcount
    )


def count_completion(connection: Connection, replica_id: str) -> None:
    connection.execute(
        update(replicas)
        .where(replicas.c.replica_id == replica_id)
        .values(chunks_completed=replicas.c.chunks_completed + 1)
    )

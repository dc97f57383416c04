"""Callbacks on their way to Koi: written with the event that they tell of, gone when Koi has taken them.

`events.append` calls `tell` in its own transaction; so nothing happens of which Koi is not told, and Koi is
told of nothing that did not happen. Where there is no Koi (`Database(tells_koi=False)`) nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tandemn.control.store.records import JobRecord, ReplicaRecord, job_record, record, replica_record
from tandemn.control.store.schema import chunks, jobs, outbox, replicas
from tandemn.events import EventKind
from tandemn.koi import callbacks
from tandemn.koi.callbacks import Callback, ToldJob, ToldReplica
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The execution option of a connection that says that there is a Koi to be told.
TELLS_KOI = "tandemn_tells_koi"
#: States of a replica whose launch goes on.
_LAUNCHING = (ReplicaState.LAUNCHING.value, ReplicaState.STARTING.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A callback that Koi has not taken yet."""

    seq: int
    event_id: str
    job_id: str
    path: str
    body: str
    emitted_at: float
    tries: int
    not_before: float


def tell(
    connection: Connection,
    kind: EventKind,
    *,
    now: float,
    job_id: str | None,
    replica_id: str | None,
    data: Mapping[str, Any],
) -> None:
    """Write what Koi is to be told of an event, if there is a Koi, and it was asked about the job."""
    if kind not in callbacks.KINDS or job_id is None or not connection.get_execution_options().get(TELLS_KOI):
        return
    row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).first()
    job = job_record(row) if row is not None else None
    if job is None or job.koi is None:
        return
    told = _told_job(connection, job, with_tokens=kind is EventKind.JOB_ENDED)
    if kind is EventKind.JOB_ENDED:
        fleet = [_told_replica(each) for each in _replicas(connection, replicas.c.job_id == job_id)]
        made = callbacks.of_job_end(data, told, fleet, now)
    else:
        [replica] = _replicas(connection, replicas.c.replica_id == replica_id)
        made = callbacks.of_replica_event(kind, data, told, _told_replica(replica), now)
    for each in made:
        _add(connection, each)


def tell_of_launches(
    connection: Connection, told: Mapping[str, int], *, now: float, every_s: float
) -> dict[str, int]:
    """Write that launches go on, where that is due; none for one of which the last has not been taken yet.

    Args:
        connection: the transaction.
        told: replica -> how often it was told of its launch.
        now: the present.
        every_s: how often it should be.

    Returns `told` as of now, without those whose launch is over.
    """
    counts = {}
    for replica in _replicas(connection, replicas.c.state.in_(_LAUNCHING)):
        number = callbacks.pulses(replica.launched_at, now=now, every_s=every_s)
        counts[replica.replica_id] = max(number, told.get(replica.replica_id, 0))
        if number <= told.get(replica.replica_id, 0) or _has_pulse(connection, replica.replica_id):
            continue
        row = connection.execute(select(jobs).where(jobs.c.job_id == replica.job_id)).one()
        job = job_record(row)
        if job.koi is not None:
            note = (replica.beat.note if replica.beat else None) or replica.reason
            pulse = callbacks.heartbeat(
                _told_job(connection, job), _told_replica(replica), number, every_s=every_s, note=note
            )
            _add(connection, pulse)
    return counts


def due(connection: Connection, *, now: float, limit: int) -> list[Waiting]:
    """Read each job's oldest callback, of which the wait is over: what is told of a job is told in order."""
    heads = select(func.min(outbox.c.seq)).group_by(outbox.c.job_id)
    query = select(outbox).where(outbox.c.seq.in_(heads), outbox.c.not_before <= now)
    return [record(Waiting, row) for row in connection.execute(query.order_by(outbox.c.seq).limit(limit))]


def forget(connection: Connection, seq: int) -> bool:
    """Forget a callback that Koi has taken, or never will; False where it is gone already."""
    return bool(connection.execute(delete(outbox).where(outbox.c.seq == seq)).rowcount)


def wake(connection: Connection) -> None:
    """Let nothing wait any longer: Koi is back, or there is a new courier, who knows nothing of its absence."""
    connection.execute(update(outbox).where(outbox.c.not_before > 0).values(not_before=0))


def wait(connection: Connection, seq: int, *, not_before: float, fault: str) -> None:
    """Keep a callback for another try."""
    connection.execute(
        update(outbox)
        .where(outbox.c.seq == seq)
        .values(tries=outbox.c.tries + 1, not_before=not_before, fault=fault)
    )


def forget_older(connection: Connection, job_id: str, *, before: float, limit: int) -> list[Waiting]:
    """Give up a job's callbacks that are as old as one that was given up for its age; returns them."""
    query = select(outbox).where(outbox.c.job_id == job_id, outbox.c.emitted_at < before)
    old = [record(Waiting, row) for row in connection.execute(query.order_by(outbox.c.seq).limit(limit))]
    connection.execute(delete(outbox).where(outbox.c.seq.in_([each.seq for each in old])))
    return old


def count(connection: Connection) -> int:
    """Return how many callbacks wait."""
    return connection.execute(select(func.count()).select_from(outbox)).scalar_one()


def _add(connection: Connection, callback: Callback) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(outbox).values(
        event_id=callback.body.event_id,
        job_id=callback.job_id,
        path=callback.path,
        # As it is sent, the same in every try.
        body=callback.body.model_dump_json(exclude_none=True),
        emitted_at=callback.body.emitted_at,
    )
    connection.execute(statement.on_conflict_do_nothing(index_elements=["event_id"]))


def _has_pulse(connection: Connection, replica_id: str) -> bool:
    """Whether a sign of this launch's life waits, so that another would say nothing more."""
    of_it = outbox.c.event_id.startswith(f"{replica_id}:launch_heartbeat:", autoescape=True)
    return connection.execute(select(outbox.c.seq).where(of_it).limit(1)).first() is not None


def _replicas(connection: Connection, which: Any) -> list[ReplicaRecord]:
    query = select(replicas).where(which).order_by(replicas.c.created_at, replicas.c.replica_id)
    return [replica_record(row) for row in connection.execute(query)]


def _told_job(connection: Connection, job: JobRecord, *, with_tokens: bool = False) -> ToldJob:
    assert job.koi is not None, "only jobs that Koi was asked about are told of"
    prompt_tokens, output_tokens = 0, 0
    if with_tokens:
        sums = select(
            func.coalesce(func.sum(chunks.c.prompt_tokens), 0),
            func.coalesce(func.sum(chunks.c.output_tokens), 0),
        )
        prompt_tokens, output_tokens = map(
            int, connection.execute(sums.where(chunks.c.job_id == job.job_id)).one()
        )
    return ToldJob(
        job_id=job.job_id,
        advice=job.koi,
        deadline=job.deadline,
        created_at=job.created_at,
        started_at=job.started_at,
        requests=job.requests,
        completed=job.completed,
        failed=job.failed,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def _told_replica(replica: ReplicaRecord) -> ToldReplica:
    config = ReplicaConfig.model_validate(replica.config)
    handle = replica.handle or {}
    return ToldReplica(
        replica_id=replica.replica_id,
        gpu=config.gpu,
        tp=config.tp,
        pp=config.pp,
        dp=config.dp,
        market=config.market,
        region=_region(handle.get("place")) or config.region,
        instance_type=handle.get("instance_type"),
        launched_at=replica.launched_at,
        was_called=replica.said_hello_at is not None,
        reason=replica.reason,
        reason_code=replica.reason_code,
    )


def _region(place: str | None) -> str | None:
    """The region of `cloud/region/zone`, where it has landed there."""
    parts = (place or "").split("/")
    return parts[1] if len(parts) > 1 else None

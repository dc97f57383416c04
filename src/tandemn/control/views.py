"""Records as users see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control import cost
from tandemn.control.store import chunks, jobs, replicas
from tandemn.protocol.jobs import (
    ChunkCounts,
    EventList,
    EventView,
    JobState,
    JobStatus,
    JobSummary,
    LineErrorView,
    PaceView,
    ReplicaConfig,
    ReplicaView,
    RequestCounts,
    SwapView,
    WaitView,
)
from tandemn.protocol.keys import KeyMade, KeyView

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.chunks import ChunkTotals
    from tandemn.control.store.keys import KeyRecord
    from tandemn.control.store.records import EventRecord, JobRecord, ReplicaRecord
    from tandemn.control.tokens import NewKey

#: How many line errors a status shows; the count is always whole.
ERRORS_SHOWN = 100


def status(connection: Connection, job_id: str, *, now: float) -> JobStatus:
    """Everything about a job that `tandemn status` shows."""
    job = jobs.get(connection, job_id)
    totals = chunks.totals(connection, job_id)
    fleet = replicas.of_job(connection, job_id)
    live = [replica for replica in fleet if not replica.state.has_ended]
    requests = request_counts(job, totals, live)
    rates = [replica.beat_rate for replica in live if replica.beat_rate]
    requests_per_s = sum(rate["requests_per_s"] for rate in rates) if rates else None
    tokens_per_s = sum(rate["tokens_per_s"] for rate in rates) if rates else None
    remaining = requests.total - requests.completed - requests.failed
    eta_s = remaining / requests_per_s if requests_per_s and not job.state.has_ended else None
    ended = job.ended_at if job.ended_at is not None else now
    spent = cost.of(connection, job, totals, now=now)
    return JobStatus(
        job_id=job.job_id,
        owner=job.owner,
        state=job.state,
        reason=job.reason,
        code=job.code,
        priority=job.spec.priority,
        waits=_waits(job),
        model=job.model,
        engine=job.engine,
        requests=requests,
        chunks=_chunks(job, totals),
        replicas=[replica_view(replica) for replica in fleet],
        requests_per_s=requests_per_s,
        tokens_per_s=tokens_per_s,
        prompt_tokens=totals.prompt_tokens,
        output_tokens=totals.output_tokens,
        eta_s=eta_s,
        deadline=job.deadline,
        is_late=ended > job.deadline,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        cost_usd=spent.usd,
        cost=spent,
        output_file_id=job.output_file_id,
        error_file_id=job.error_file_id,
        errors=[LineErrorView.model_validate(each) for each in job.line_errors[:ERRORS_SHOWN]],
        errors_total=job.line_errors_total,
        swap=_swap(job, fleet),
        koi=job.koi,
        pace=PaceView.model_validate(job.pace) if job.pace else None,
    )


def summary(connection: Connection, job: JobRecord, *, now: float) -> JobSummary:
    """One row of `tandemn list`."""
    totals = chunks.totals(connection, job.job_id)
    ended = job.ended_at if job.ended_at is not None else now
    return JobSummary(
        job_id=job.job_id,
        owner=job.owner,
        state=job.state,
        priority=job.spec.priority,
        waits=_waits(job),
        model=job.model,
        requests=request_counts(job, totals, []),
        created_at=job.created_at,
        deadline=job.deadline,
        is_late=ended > job.deadline,
        ended_at=job.ended_at,
        reason=job.reason,
    )


def _waits(job: JobRecord) -> WaitView | None:
    if job.waits is None or job.state not in jobs.NEEDS_REPLICAS:
        return None
    return WaitView.model_validate(job.waits)


def replica_view(replica: ReplicaRecord) -> ReplicaView:
    config = ReplicaConfig.model_validate(replica.config)
    rate = replica.beat_rate if not replica.state.has_ended else None
    note = replica.beat.note if replica.beat and not replica.state.has_ended else None
    return ReplicaView(
        replica_id=replica.replica_id,
        state=replica.state,
        gpu=config.gpu,
        tp=config.tp,
        pp=config.pp,
        market=config.market,
        region=config.region,
        pid=(replica.handle or {}).get("pid"),
        reason=note or replica.reason,
        reason_code=replica.reason_code if replica.state.has_ended else None,
        chunks_completed=replica.chunks_completed,
        requests_per_s=rate["requests_per_s"] if rate else None,
    )


def key_view(key: KeyRecord) -> KeyView:
    return KeyView(
        name=key.name,
        role=key.role,
        key_id=key.key_id,
        created_at=key.created_at,
        created_by=key.created_by,
        rotated_at=key.rotated_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def key_made(key: KeyRecord, new: NewKey) -> KeyMade:
    """Tell a key; nothing keeps it."""
    return KeyMade(**key_view(key).model_dump(), key=new.key)


def event_list(found: list[EventRecord], limit: int) -> EventList:
    """Make a page of events of what was read."""
    shown = [
        EventView(
            seq=each.seq,
            at=each.at,
            kind=each.kind,
            job_id=each.job_id,
            service_name=each.service_name,
            replica_id=each.replica_id,
            actor=each.actor,
            data=each.data,
        )
        for each in found
    ]
    return EventList(events=shown, next_after=shown[-1].seq if len(shown) == limit else None)


def request_counts(job: JobRecord, totals: ChunkTotals, live: list[ReplicaRecord]) -> RequestCounts:
    """Count answered requests: of chunks that are done, and of those that `live` replicas are at."""
    if job.state.has_ended:
        completed, failed = job.completed, job.failed
    else:
        progress = [each for replica in live if replica.beat for each in replica.beat.chunks]
        completed = totals.completed + sum(each.completed for each in progress)
        failed = totals.failed + sum(each.failed for each in progress)
        # A beat may still name a chunk that was completed since.
        completed = min(completed, job.requests - failed)
    return RequestCounts(total=job.requests, completed=completed, failed=failed, recomputed=totals.recomputed)


def _chunks(job: JobRecord, totals: ChunkTotals) -> ChunkCounts:
    left = totals.total - totals.done
    over = job.state is JobState.ASSEMBLING or job.state.has_ended
    leased = 0 if over else totals.leased
    return ChunkCounts(
        total=totals.total,
        completed=totals.done,
        leased=leased,
        pending=0 if over else left - leased,
        failed=left if over else 0,
    )


def _swap(job: JobRecord, fleet: list[ReplicaRecord]) -> SwapView | None:
    if job.swap is None:
        return None
    new_group = job.swap["new_group"]
    new = [replica for replica in fleet if replica.group == new_group]
    return SwapView(
        state=job.swap["state"],
        reason=job.swap["reason"],
        new=[replica.replica_id for replica in new],
        old=job.swap["old"],
        ready=sum(1 for replica in new if replica.began_at is not None),
        threshold=job.swap["threshold"],
    )

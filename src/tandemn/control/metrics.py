"""What jobs and replicas do now, and what is kept of that: for `tandemn metrics` and for `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn import __version__
from tandemn.control import series
from tandemn.control.exposition import JobFigures, Page, ReplicaFigures
from tandemn.control.store import chunks, deployments, jobs, outbox, replicas, samples
from tandemn.control.views import request_counts
from tandemn.errors import NotFound
from tandemn.protocol.deployments import DeploymentState
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.metrics import JobMetrics, ReplicaMetrics, ReplicaSeries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from tandemn.control.store.records import JobRecord, ReplicaRecord

#: Replicas of a job that are listed: of very many the youngest.
REPLICAS_TOLD = 200
#: Jobs and replicas on the page that Prometheus reads, the oldest first: what keeps its series bounded.
JOBS_ON_PAGE = 500
REPLICAS_ON_PAGE = 2000
_LIVING = tuple(state for state in DeploymentState if not state.has_ended)


def of_job(
    connection: Connection, job_id: str, *, replica: str | None, with_series: bool, now: float
) -> JobMetrics:
    """What a job's replicas do, or did.

    Raises:
        NotFound: it has no such replica.
    """
    job = jobs.get(connection, job_id)
    chosen = _chosen(job, replicas.of_job(connection, job_id), replica)
    told = chosen[-REPLICAS_TOLD:]
    return JobMetrics(
        job_id=job.job_id,
        state=job.state,
        engine=job.engine,
        at=now,
        replicas=[_metrics(each) for each in told],
        series=_series(connection, told) if with_series else None,
        left_out=len(chosen) - len(told),
    )


def _chosen(job: JobRecord, fleet: Sequence[ReplicaRecord], replica: str | None) -> list[ReplicaRecord]:
    if replica is None:
        return [each for each in fleet if job.state.has_ended or not each.state.has_ended]
    chosen = [each for each in fleet if replica in {each.replica_id, each.name}]
    if not chosen:
        raise NotFound(
            f"job {job.job_id} has no replica {replica}",
            code="replica_not_found",
            next_step=f"`tandemn status {job.job_id}` shows the job's replicas",
            object_id=replica,
        )
    return chosen


def _metrics(replica: ReplicaRecord) -> ReplicaMetrics:
    config = ReplicaConfig.model_validate(replica.config)
    beat = replica.beat
    rate = replica.beat_rate if not replica.state.has_ended else None
    return ReplicaMetrics(
        replica_id=replica.replica_id,
        state=replica.state,
        gpu=config.gpu,
        market=config.market,
        seen_at=replica.last_seen,
        requests_per_s=rate["requests_per_s"] if rate else None,
        tokens_per_s=rate["tokens_per_s"] if rate else None,
        requests_done=beat.requests_done if beat else 0,
        output_tokens=beat.output_tokens if beat else 0,
        engine=beat.engine if beat else None,
        machine=beat.machine if beat else None,
    )


def _series(connection: Connection, fleet: Sequence[ReplicaRecord]) -> list[ReplicaSeries]:
    found = []
    for each in fleet:
        step_s, kept = samples.of_replica(connection, each.replica_id)
        most = max(series.POINTS_TOLD // len(fleet), 2)
        told = series.thinned(kept, most)
        points = series.points_of(told)
        stretch = len(kept) / len(told) if told else 1.0
        found.append(ReplicaSeries(replica_id=each.replica_id, step_s=step_s * stretch, points=points))
    return found


def page(
    connection: Connection,
    *,
    owner: str | None,
    now: float,
    is_leading: bool,
    tells_koi: bool,
    repeated_transactions: int,
) -> Page:
    """Everything that is on the page, of the objects of one owner, or of all."""
    active = [job for job in jobs.active(connection) if owner is None or job.owner == owner]
    by_job: dict[str, list[ReplicaRecord]] = {}
    for each in replicas.live(connection):
        by_job.setdefault(each.job_id, []).append(each)
    shown = active[:JOBS_ON_PAGE]
    named = {job.job_id for job in active} if owner is not None else set(by_job)
    fleet = [each for job_id, members in sorted(by_job.items()) if job_id in named for each in members]
    return Page(
        version=__version__,
        is_leading=is_leading,
        now=now,
        job_states=[job.state for job in active],
        deployment_states=[each.state for each in deployments.all_of(connection, _LIVING, owner=owner)],
        jobs=[_job_figures(connection, job, by_job.get(job.job_id, [])) for job in shown],
        replicas=[_replica_figures(each) for each in fleet[:REPLICAS_ON_PAGE]],
        jobs_left_out=len(active) - len(shown),
        replicas_left_out=max(0, len(fleet) - REPLICAS_ON_PAGE),
        repeated_transactions=repeated_transactions,
        callbacks_waiting=outbox.count(connection) if tells_koi and owner is None else None,
    )


def _job_figures(connection: Connection, job: JobRecord, live: list[ReplicaRecord]) -> JobFigures:
    counts = request_counts(job, chunks.totals(connection, job.job_id), live)
    return JobFigures(
        job_id=job.job_id,
        completed=counts.completed,
        failed=counts.failed,
        left=counts.total - counts.completed - counts.failed,
        deadline=job.deadline,
        replica_states=[each.state for each in live],
    )


def _replica_figures(replica: ReplicaRecord) -> ReplicaFigures:
    return ReplicaFigures(
        job_id=replica.job_id, replica_id=replica.replica_id, seen_at=replica.last_seen, beat=replica.beat
    )

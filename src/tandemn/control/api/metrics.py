"""Figures: of one job for people, of everything that lives for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from tandemn.control import metrics
from tandemn.control.api.dependencies import CallerNow, JobId, ServicesNow
from tandemn.control.exposition import exposition
from tandemn.prometheus import CONTENT_TYPE
from tandemn.protocol.metrics import JobMetrics

router = APIRouter()


@router.get("/api/jobs/{job_id}/metrics")
async def of_job(
    job_id: JobId,
    services: ServicesNow,
    replica: Annotated[str | None, Query(max_length=100)] = None,
    *,
    series: bool = False,
) -> JobMetrics:
    """What its replicas do; with `series`, what they did, too."""
    return await services.database.run(
        metrics.of_job, job_id, replica=replica, with_series=series, now=services.clock.now()
    )


@router.get("/metrics")
async def page(services: ServicesNow, caller: CallerNow) -> Response:
    """What Prometheus reads; a user's key shows that user's jobs and deployments only."""
    leadership = services.leadership
    leader = leadership.leader
    found = await services.database.run(
        metrics.page,
        owner=caller.sees,
        now=services.clock.now(),
        is_leading=leader is not None and leader.server_id == leadership.me.server_id,
        tells_koi=services.settings.koi_service_url is not None,
        repeated_transactions=services.database.counts.repeated,
    )
    return Response(exposition(found), media_type=CONTENT_TYPE)

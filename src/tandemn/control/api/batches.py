"""OpenAI's Batches API: a batch is a job."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from tandemn.control import submission
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.retention import LONGEST_S
from tandemn.control.services import Services
from tandemn.control.store import jobs
from tandemn.control.store.records import JobRecord
from tandemn.control.views import status
from tandemn.errors import Conflict, InvalidInput, NotFound
from tandemn.protocol.jobs import LONGEST_SLO_S, Endpoint, JobSpec, JobState, JobStatus, Metadata
from tandemn.protocol.openai import (
    Batch,
    BatchError,
    BatchErrors,
    BatchList,
    BatchRequestCounts,
    BatchUsage,
)

router = APIRouter(prefix="/v1/batches")

_WINDOW = re.compile(r"(\d{1,6})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_STATUS: dict[JobState, str] = {
    JobState.VALIDATING: "validating",
    JobState.PLANNING: "in_progress",
    JobState.WAITING: "in_progress",
    JobState.LAUNCHING: "in_progress",
    JobState.RUNNING: "in_progress",
    JobState.CANCELLING: "cancelling",
    JobState.ASSEMBLING: "finalizing",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "expired",
    JobState.OVER_BUDGET: "cancelled",
}


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int = Field(gt=0, le=LONGEST_S)


class CreateBatch(BaseModel):
    """The body of `POST /v1/batches`; fields that are OpenAI's alone are accepted and ignored."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: str = Field(max_length=20)
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("")
async def create(body: CreateBatch, services: ServicesNow, caller: CallerNow) -> Batch:
    spec = JobSpec(
        model="from the lines",
        model_from_lines=True,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        slo_s=_window_s(body.completion_window),
        stop_at_deadline=True,
        metadata=body.metadata,
        output_expires_s=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    try:
        job_id = await submission.submit(services, spec, caller)
    except NotFound as exc:
        raise InvalidInput(exc.message, code="invalid_input_file_id", param="input_file_id") from exc
    return await _batch(services, job_id)


@router.get("")
async def list_batches(
    services: ServicesNow,
    caller: CallerNow,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> BatchList:
    if after is not None:
        await services.database.run(jobs.get_batch, after, owner=caller.sees)
    found = await services.database.run(jobs.page, limit=limit, after=after, states=None, owner=caller.sees)
    data = [await _batch(services, job.job_id) for job in found[:limit]]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/{batch_id}")
async def retrieve(batch_id: str, services: ServicesNow) -> Batch:
    return await _batch(services, batch_id)


@router.post("/{batch_id}/cancel")
async def cancel(batch_id: str, services: ServicesNow, caller: CallerNow) -> Batch:
    job = await services.database.run(jobs.get_batch, batch_id)
    if job.state.has_ended:
        raise Conflict(
            f"Cannot cancel a batch with status '{_STATUS[job.state]}'.",
            code="batch_not_cancellable",
            object_id=batch_id,
        )
    await submission.request_cancel(services, batch_id, actor=caller.name)
    return await _batch(services, batch_id)


async def _batch(services: Services, job_id: str) -> Batch:
    now = services.clock.now()
    job = await services.database.run(jobs.get_batch, job_id)
    job_status = await services.database.run(status, job_id, now=now)
    return _render(job, job_status)


def _render(job: JobRecord, view: JobStatus) -> Batch:
    state: Literal["failed", "in_progress"] = _STATUS[view.state]  # type: ignore[assignment]
    created = int(job.created_at)
    began = int(job.started_at) if job.started_at is not None else None

    def ended_as(*states: JobState) -> int | None:
        return int(job.ended_at) if job.ended_at is not None and view.state in states else None

    return Batch(
        id=job.job_id,
        endpoint=job.endpoint or "",
        model=job.model or None,
        errors=_errors(job, view),
        input_file_id=job.spec.input_file_id or job.spec.input_url or "",
        completion_window=_window_text(job.spec.slo_s),
        status=state,
        output_file_id=view.output_file_id,
        error_file_id=view.error_file_id,
        created_at=created,
        in_progress_at=began,
        expires_at=int(job.deadline),
        finalizing_at=int(job.assembling_at) if job.assembling_at is not None else None,
        completed_at=ended_as(JobState.COMPLETED),
        failed_at=ended_as(JobState.FAILED),
        expired_at=ended_as(JobState.EXPIRED),
        cancelling_at=int(job.cancelling_at) if job.cancelling_at is not None else None,
        cancelled_at=ended_as(JobState.CANCELLED, JobState.OVER_BUDGET),
        request_counts=BatchRequestCounts(
            total=view.requests.total, completed=view.requests.completed, failed=view.requests.failed
        ),
        usage=BatchUsage(
            input_tokens=view.prompt_tokens,
            output_tokens=view.output_tokens,
            total_tokens=view.prompt_tokens + view.output_tokens,
        ),
        metadata=job.spec.metadata,
    )


def _errors(job: JobRecord, view: JobStatus) -> BatchErrors | None:
    data = [
        BatchError(code=each.code, message=each.message, param=each.param, line=each.line)
        for each in view.errors
    ]
    if view.state is JobState.FAILED and not data:
        data = [BatchError(code=job.code or "failed", message=job.reason or "the job failed")]
    return BatchErrors(data=data) if data else None


def _window_s(text: str) -> float:
    """Read `24h`, `30m` …; OpenAI knows `24h` only."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNIT_S[match[2]] if match else 0
    if not 0 < seconds <= LONGEST_SLO_S:
        raise InvalidInput(
            f"completion_window {text!r} is no duration such as 24h, 4h or 30m, of 30d at most",
            code="invalid_completion_window",
            param="completion_window",
        )
    return float(seconds)


def _window_text(seconds: float) -> str:
    for unit in ("h", "m"):
        if seconds >= _UNIT_S[unit] and seconds % _UNIT_S[unit] == 0:
            return f"{int(seconds // _UNIT_S[unit])}{unit}"
    return f"{int(seconds)}s"

"""Jobs: submit, look, cancel, download."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from tandemn.control import names, submission
from tandemn.control.api.dependencies import CallerNow, JobId, ServicesNow
from tandemn.control.api.server import LAST_SEQ
from tandemn.control.log_stream import stream_logs
from tandemn.control.operations import destroy as destroy_job
from tandemn.control.services import Services
from tandemn.control.store import chunks, events, files, jobs, replicas
from tandemn.control.store.records import JobRecord
from tandemn.control.views import event_list, status, summary
from tandemn.errors import Conflict, InvalidInput, NotFound
from tandemn.protocol.jobs import (
    EventList,
    JobList,
    JobSpec,
    JobState,
    JobStatus,
)

router = APIRouter(prefix="/api/jobs")

#: Chunks read from the database at a time, for a partial download.
_PAGE = 500
_JSONL = "application/jsonl"
#: How long a look at a job may be held back.
LOOK_LIMIT_S = 30.0


@router.post("", status_code=201)
async def submit(spec: JobSpec, services: ServicesNow, caller: CallerNow) -> JobStatus:
    job_id = await submission.submit(services, spec, caller)
    return await _status(services, job_id)


@router.get("")
async def list_jobs(
    services: ServicesNow,
    caller: CallerNow,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str | None = None,
    state: str | None = None,
) -> JobList:
    now = services.clock.now()

    def read(connection: Connection) -> JobList:
        ids = replicas.live_jobs(connection) if state == "live" else None
        states = None if state == "live" else _states(state)
        found = jobs.page(
            connection,
            limit=limit,
            after=after,
            states=states,
            with_live_replicas=ids,
            owner=caller.sees,
        )
        shown = found[:limit]
        return JobList(
            jobs=[summary(connection, job, now=now) for job in shown],
            next_after=shown[-1].job_id if len(found) > limit else None,
        )

    return await services.database.run(read)


def _states(state: str | None) -> tuple[str, ...] | None:
    match state:
        case None:
            return None
        case "active":
            return tuple(each.value for each in JobState if not each.has_ended)
        case "ended":
            return jobs.ENDED
        case _ if state in set(JobState):
            return (state,)
    raise InvalidInput(
        f"no such state: {state}",
        code="invalid_state",
        param="state",
        next_step=f"states: active, ended, live, {', '.join(JobState)}",
    )


@router.get("/{job_id}")
async def get(
    job_id: JobId,
    services: ServicesNow,
    wait_s: Annotated[float, Query(ge=0, le=LOOK_LIMIT_S)] = 0.0,
    state: JobState | None = None,
) -> JobStatus:
    """Look at a job; with `state`, when it has left that state, at the latest after `wait_s`."""
    job = await services.database.run(jobs.get, job_id)
    end = asyncio.get_running_loop().time() + wait_s
    while job.state is state and (left := end - asyncio.get_running_loop().time()) > 0:
        await services.pulse.wait(job.job_id, left)
        job = await services.database.run(jobs.get, job.job_id)
    return await _status(services, job.job_id)


@router.post("/{job_id}/cancel")
async def cancel(job_id: JobId, services: ServicesNow, caller: CallerNow) -> JobStatus:
    """End the job as cancelled, keeping its finished answers; an ended one stays as it is."""
    await submission.request_cancel(services, job_id, actor=caller.name)
    return await _status(services, job_id)


@router.post("/{job_id}/destroy")
async def destroy(job_id: JobId, services: ServicesNow, caller: CallerNow) -> JobStatus:
    await destroy_job(services, job_id, actor=caller.name)
    return await _status(services, job_id)


@router.get("/{job_id}/output")
async def output(job_id: JobId, services: ServicesNow, *, partial: bool = False) -> StreamingResponse:
    """Stream the answers; of a job that has not ended only with `partial`, those of finished chunks."""
    job = await services.database.run(jobs.get, job_id)
    if job.purged_at is not None:
        raise _deleted(job)
    if job.state.has_ended and (job.output_file_id is not None or not await _has_answers(services, job)):
        return await _file(services, job, job.output_file_id)
    if not partial and job.state.has_ended:
        raise Conflict(
            f"job {job.job_id} failed before its output could be assembled",
            code="output_not_assembled",
            next_step=f"take the finished chunks: tandemn download {job.job_id} --partial",
            object_id=job.job_id,
        )
    if not partial:
        raise Conflict(
            f"job {job.job_id} is {job.state}; its output is not assembled yet",
            code="job_not_ended",
            next_step=f"wait for it, or take what is there: tandemn download {job.job_id} --partial",
            object_id=job.job_id,
        )
    return StreamingResponse(_finished(services, job), media_type=_JSONL)


@router.get("/{job_id}/errors")
async def error_lines(job_id: JobId, services: ServicesNow) -> StreamingResponse:
    job = await services.database.run(jobs.get, job_id)
    return await _file(services, job, job.error_file_id)


async def _file(services: Services, job: JobRecord, file_id: str | None) -> StreamingResponse:
    if file_id is None:
        return StreamingResponse(_nothing(), media_type=_JSONL)
    try:
        file = await services.database.run(files.get, file_id)
    except NotFound as exc:
        raise _deleted(job) from exc
    headers = {"Content-Length": str(file.bytes)}
    return StreamingResponse(services.objects.stream(file.object), headers=headers, media_type=_JSONL)


def _deleted(job: JobRecord) -> NotFound:
    return NotFound(
        f"what job {job.job_id} put out was deleted, or has expired",
        code="output_deleted",
        object_id=job.job_id,
    )


async def _nothing() -> AsyncIterator[bytes]:
    no_blocks: tuple[bytes, ...] = ()
    for block in no_blocks:
        yield block


async def _has_answers(services: Services, job: JobRecord) -> bool:
    return (await services.database.run(chunks.totals, job.job_id)).completed > 0


async def _finished(services: Services, job: JobRecord) -> AsyncIterator[bytes]:
    after = -1
    while page := await services.database.run(chunks.page, job.job_id, after=after, limit=_PAGE):
        for chunk in page:
            if chunk.done and chunk.completed and chunk.token:
                name = names.chunk_object(job.job_id, chunk.chunk, chunk.token)
                async for block in services.objects.stream(name):
                    yield block
        after = page[-1].chunk


@router.get("/{job_id}/events")
async def list_events(
    job_id: JobId,
    services: ServicesNow,
    after: Annotated[int, Query(ge=0, le=LAST_SEQ)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> EventList:
    found = await services.database.run(events.of_job, job_id, after=after, limit=limit)
    return event_list(found, limit)


@router.get("/{job_id}/logs")
async def logs(
    job_id: JobId,
    services: ServicesNow,
    replica: str | None = None,
    tail: Annotated[int, Query(ge=0, le=100_000)] = 200,
    *,
    follow: bool = False,
) -> StreamingResponse:
    lines = await stream_logs(services, job_id, replica=replica, tail=tail, follow=follow)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")


async def _status(services: Services, job_id: str) -> JobStatus:
    return await services.database.run(status, job_id, now=services.clock.now())

"""A running job's fleet: add, kill, swap."""

from __future__ import annotations

from fastapi import APIRouter

from tandemn.control import operations
from tandemn.control.api.dependencies import CallerNow, JobId, ServicesNow
from tandemn.control.views import status
from tandemn.protocol.jobs import (
    AddAnswer,
    AddRequest,
    JobStatus,
    KillAnswer,
    KillRequest,
    SwapAnswer,
    SwapRequest,
)

router = APIRouter(prefix="/api/jobs/{job_id}")


@router.post("/add")
async def add(job_id: JobId, request: AddRequest, services: ServicesNow, caller: CallerNow) -> AddAnswer:
    return await operations.add(services, job_id, request, actor=caller.name)


@router.post("/kill")
async def kill(job_id: JobId, request: KillRequest, services: ServicesNow, caller: CallerNow) -> KillAnswer:
    return await operations.kill(services, job_id, request.replicas, actor=caller.name)


@router.post("/swap")
async def swap(job_id: JobId, request: SwapRequest, services: ServicesNow, caller: CallerNow) -> SwapAnswer:
    return await operations.swap(services, job_id, request, actor=caller.name)


@router.delete("/swap")
async def cancel_swap(job_id: JobId, services: ServicesNow, caller: CallerNow) -> JobStatus:
    await operations.cancel_swap(services, job_id, actor=caller.name)
    return await services.database.run(status, job_id, now=services.clock.now())

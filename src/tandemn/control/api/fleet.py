"""A running job's fleet: add, kill, swap."""

from __future__ import annotations

from fastapi import APIRouter

from tandemn.control import operations
from tandemn.control.api.dependencies import ServicesNow
from tandemn.control.store import jobs
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
async def add(job_id: str, request: AddRequest, services: ServicesNow) -> AddAnswer:
    return await operations.add(services, job_id, request)


@router.post("/kill")
async def kill(job_id: str, request: KillRequest, services: ServicesNow) -> KillAnswer:
    return await operations.kill(services, job_id, request.replicas)


@router.post("/swap")
async def swap(job_id: str, request: SwapRequest, services: ServicesNow) -> SwapAnswer:
    return await operations.swap(services, job_id, request)


@router.delete("/swap")
async def cancel_swap(job_id: str, services: ServicesNow) -> JobStatus:
    job_id = await operations.cancel_swap(services, job_id)
    job = await services.database.run(jobs.get, job_id)
    return await services.database.run(status, job.job_id, now=services.clock.now())

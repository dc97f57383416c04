"""Deployments: plan, deploy, look, keys, logs, destroy."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from tandemn.control import deployment_cost, deployment_planning, online
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.api.jobs import LOOK_LIMIT_S
from tandemn.control.api.server import LAST_SEQ
from tandemn.control.deployment_logs import stream_logs
from tandemn.control.deployment_views import status, summary
from tandemn.control.store import deployments, events
from tandemn.control.views import event_list
from tandemn.protocol.cost import DeploymentCostView
from tandemn.protocol.deployments import (
    DeploymentList,
    DeploymentPlan,
    DeploymentRequest,
    DeploymentStatus,
    EndpointKey,
    RotateRequest,
)
from tandemn.protocol.jobs import EventList

router = APIRouter(prefix="/api/deployments")


@router.post("", status_code=201)
async def deploy(request: DeploymentRequest, services: ServicesNow, caller: CallerNow) -> DeploymentStatus:
    return status(await online.deploy(services, request, caller))


@router.post("/plan")
async def plan(request: DeploymentRequest, services: ServicesNow, caller: CallerNow) -> DeploymentPlan:
    return (await deployment_planning.plan(services, request, caller, is_look=True)).view


@router.get("")
async def list_deployments(
    services: ServicesNow, caller: CallerNow, state: str | None = None
) -> DeploymentList:
    found = await services.database.run(deployments.all_of, online.states_named(state), owner=caller.sees)
    return DeploymentList(deployments=[summary(record) for record in reversed(found)])


@router.get("/{service_name}")
async def get(
    service_name: str,
    services: ServicesNow,
    wait_s: Annotated[float, Query(ge=0, le=LOOK_LIMIT_S)] = 0.0,
    since: float | None = None,
) -> DeploymentStatus:
    """Look at a deployment; with `since`, when it was changed after that, at the latest after `wait_s`."""
    end = asyncio.get_running_loop().time() + wait_s
    record = await services.database.run(deployments.get, service_name)
    while since is not None and record.updated_at <= since:
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            break
        await services.online.wait(service_name, left)
        record = await services.database.run(deployments.get, service_name)
    return status(record)


@router.delete("/{service_name}", status_code=202)
async def destroy(service_name: str, services: ServicesNow, caller: CallerNow) -> DeploymentStatus:
    return status(await online.destroy(services, service_name, actor=caller.name))


@router.get("/{service_name}/cost")
async def cost(service_name: str, services: ServicesNow) -> DeploymentCostView:
    record = await services.database.run(deployments.get, service_name)
    return await services.database.run(deployment_cost.of, record, now=services.clock.now())


@router.get("/{service_name}/key")
async def key(service_name: str, services: ServicesNow) -> EndpointKey:
    return await online.endpoint_key(services, service_name)


@router.post("/{service_name}/key/rotate")
async def rotate(
    service_name: str, request: RotateRequest, services: ServicesNow, caller: CallerNow
) -> EndpointKey:
    return await online.rotate(services, service_name, keep_old_s=request.keep_old_s, actor=caller.name)


@router.get("/{service_name}/events")
async def list_events(
    service_name: str,
    services: ServicesNow,
    caller: CallerNow,
    after: Annotated[int, Query(ge=0, le=LAST_SEQ)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> EventList:
    record = await services.database.run(deployments.get, service_name)
    # Another owner's may have had the name before.
    since = record.created_at if caller.sees is not None else 0.0
    found = await services.database.run(
        events.of_deployment, service_name, after=after, limit=limit, since=since
    )
    return event_list(found, limit)


@router.get("/{service_name}/logs")
async def logs(
    service_name: str,
    services: ServicesNow,
    part: str | None = None,
    tail: Annotated[int, Query(ge=0, le=100_000)] = 200,
    *,
    follow: bool = False,
) -> StreamingResponse:
    lines = await stream_logs(services, service_name, part=part, tail=tail, follow=follow)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")

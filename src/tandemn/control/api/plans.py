"""Plans and quotas: looking before leaping."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from tandemn.control import planning
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.cloud_choice import choose_cloud
from tandemn.errors import InvalidInput, NotAllowed
from tandemn.koi.contract import Resources
from tandemn.placement.catalog.offers import table_offers
from tandemn.placement.quota import as_rows
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.plans import CloudChoice, PlanAnswer, QuotaAnswer

router = APIRouter()

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]{2,20}){1,3}-\d{1,2}")


@router.get("/resources")
async def resources(services: ServicesNow) -> Resources:
    """What Koi plans with; it may read this at any time."""
    return await planning.resources_at_hand(services)


@router.post("/api/plans")
async def plan(spec: JobSpec, services: ServicesNow, caller: CallerNow) -> PlanAnswer:
    return await planning.plan(services, spec, caller)


@router.post("/api/plans/cloud")
async def cloud(spec: JobSpec, services: ServicesNow) -> CloudChoice:
    return await choose_cloud(services, spec)


@router.get("/api/quota")
async def quota(
    services: ServicesNow, region: Annotated[str | None, Query(max_length=2000)] = None
) -> QuotaAnswer:
    regions = (
        region.split(",") if region else sorted({offer.region for offer in table_offers() if offer.region})
    )
    for each in regions:
        # It becomes part of a host name.
        if not _REGION.fullmatch(each):
            raise InvalidInput(
                f"{each[:40]!r} is no region of AWS, such as us-east-1", code="invalid_value", param="region"
            )
    try:
        found = await asyncio.to_thread(partial(services.quotas.read, regions, fresh=True))
    except NotAllowed as exc:
        # The control plane's own credentials: not what the caller's key lacks.
        raise InvalidInput(exc.message, code="provider_credentials", next_step=exc.next_step) from exc
    return QuotaAnswer.model_validate({"quotas": as_rows(found)})

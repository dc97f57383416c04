"""Plans and quotas: looking before leaping."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from tandemn.control import planning
from tandemn.control.api.dependencies import ServicesNow
from tandemn.placement.catalog.offers import table_offers
from tandemn.placement.quota import QuotaReader, as_rows
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.plans import PlanAnswer, QuotaAnswer

router = APIRouter(prefix="/api")


@router.post("/plans")
async def plan(spec: JobSpec, services: ServicesNow) -> PlanAnswer:
    return await planning.plan(services, spec)


@router.get("/quota")
async def quota(
    services: ServicesNow, region: Annotated[str | None, Query(max_length=2000)] = None
) -> QuotaAnswer:
    regions = (
        region.split(",") if region else sorted({offer.region for offer in table_offers() if offer.region})
    )
    found = await asyncio.to_thread(QuotaReader(services.clock).read, regions)
    return QuotaAnswer.model_validate({"quotas": as_rows(found)})

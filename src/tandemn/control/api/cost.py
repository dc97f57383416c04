"""What everything costs; one job's cost is part of its status."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tandemn.control import cost
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.protocol.jobs import CostReport

router = APIRouter(prefix="/api/cost")


@router.get("")
async def report(
    services: ServicesNow, caller: CallerNow, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> CostReport:
    return await services.database.run(cost.report, limit=limit, now=services.clock.now(), owner=caller.sees)

"""Checking what everything needs, and clearing away what no record knows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tandemn.control import checks, strays
from tandemn.control.api.dependencies import ServicesNow
from tandemn.protocol.upkeep import CheckReport, CollectRequest, StrayReport

router = APIRouter(prefix="/api")


@router.get("/check")
async def check(
    services: ServicesNow, provider: Annotated[str | None, Query(max_length=64)] = None
) -> CheckReport:
    return await checks.check(services, provider)


@router.get("/strays")
async def find_strays(services: ServicesNow) -> StrayReport:
    return await strays.find(services)


@router.post("/strays/collect")
async def collect_strays(request: CollectRequest, services: ServicesNow) -> StrayReport:
    return await strays.collect(services, request.remote_names)

"""What the control plane says of itself, and what happened on it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.store import events
from tandemn.control.views import event_list
from tandemn.protocol.jobs import ControlPlaneView, EventList, ServerStatus
from tandemn.protocol.keys import Me

router = APIRouter(prefix="/api")

#: The greatest number that both databases can count events with.
LAST_SEQ = 2**63 - 1


@router.get("/server")
async def server(services: ServicesNow) -> ServerStatus:
    leadership = services.leadership
    leader = leadership.leader.server_id if leadership.leader else None
    this = leadership.me
    return ServerStatus(
        url=this.url,
        pid=this.pid,
        version=this.version,
        control_planes=[
            ControlPlaneView(
                url=each.url, pid=each.pid, version=each.version, is_leading=each.server_id == leader
            )
            for each in leadership.members
        ],
    )


@router.get("/me")
async def me(caller: CallerNow) -> Me:
    """Say whom the caller's key makes it."""
    return Me(name=caller.name, role=caller.role)


@router.get("/events")
async def list_events(
    services: ServicesNow,
    after: Annotated[int, Query(ge=0, le=LAST_SEQ)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    actor: Annotated[str | None, Query(max_length=80)] = None,
) -> EventList:
    """List what happened on the whole server, oldest first."""
    return event_list(await services.database.run(events.page, after=after, limit=limit, actor=actor), limit)

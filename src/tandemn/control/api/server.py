"""What the control plane says of itself."""

from __future__ import annotations

import os

from fastapi import APIRouter

from tandemn import __version__
from tandemn.control.api.dependencies import ServicesNow
from tandemn.protocol.jobs import ServerStatus

router = APIRouter(prefix="/api")


@router.get("/server")
async def server(services: ServicesNow) -> ServerStatus:
    return ServerStatus(url=services.server_url, pid=os.getpid(), version=__version__)

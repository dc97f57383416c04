"""The control plane's wiring: opens what its parts share, and puts the routes together."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI

from tandemn import __version__
from tandemn.batch.leases import LeaseDesk
from tandemn.batch.redis_queue import RedisQueue
from tandemn.clock import SystemClock
from tandemn.control.api import batches, failures, files, fleet, jobs, replicas, server
from tandemn.control.api.guard import BrowserGuard
from tandemn.control.embedded_redis import EmbeddedRedis
from tandemn.control.reconcilers.supervisor import Supervisor
from tandemn.control.services import Services
from tandemn.control.store.chunk_table import SqlChunkTable
from tandemn.control.store.database import Database
from tandemn.errors import TandemnError
from tandemn.fleet.launchers.local import LocalLauncher
from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.settings import Settings

_log = structlog.get_logger()

#: How often the embedded Redis is looked at, to start it again should it have died.
REDIS_WATCH_S = 1.0


def create_app(services: Services) -> FastAPI:
    """Put the routes together over opened services."""
    app = FastAPI(title="Tandemn control plane", version=__version__, docs_url=None, redoc_url=None)
    app.state.services = services
    failures.install(app)
    for module in (server, files, batches, jobs, fleet, replicas):
        app.include_router(module.router)
    app.add_middleware(BrowserGuard)
    return app


@asynccontextmanager
async def open_services(settings: Settings, *, server_url: str) -> AsyncIterator[tuple[Services, Supervisor]]:
    """Open everything, keep the jobs moving, and close it again; replicas and Redis are left running."""
    home = settings.home_path
    database = Database(settings.database_url or f"sqlite:///{home / 'state.db'}")
    await asyncio.to_thread(database.migrate)
    embedded = None
    if settings.redis_url is not None:
        redis_url = settings.redis_url.get_secret_value()
    else:
        embedded = EmbeddedRedis(home)
        redis_url = (await asyncio.to_thread(embedded.start_or_adopt)).url
    clock = SystemClock()
    queue = RedisQueue(redis_url)
    table = SqlChunkTable(database, clock)
    services = Services(
        settings=settings,
        clock=clock,
        database=database,
        objects=ObjectStore.open(settings.objects_url or home / "objects"),
        queue=queue,
        desk=LeaseDesk(queue, table, lease_ms=round(settings.lease_s * 1000)),
        launchers={"local": LocalLauncher(home, settings.local_slots)},
        server_url=settings.public_url or server_url,
        listening_since=clock.now(),
    )
    supervisor = Supervisor(services)
    tasks = [asyncio.create_task(supervisor.run(), name="supervisor")]
    if embedded is not None:
        tasks.append(asyncio.create_task(_keep_redis(embedded), name="redis"))
    try:
        yield services, supervisor
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await queue.aclose()
        await asyncio.to_thread(database.close)


async def _keep_redis(embedded: EmbeddedRedis) -> None:
    """Start the embedded Redis again whenever it has died; its append-only file brings the queue back."""
    while True:
        await asyncio.sleep(REDIS_WATCH_S)
        try:
            if not await asyncio.to_thread(embedded.is_alive):
                _log.warning("the embedded Redis has died; starting it again")
                await asyncio.to_thread(embedded.start_or_adopt)
        except (TandemnError, OSError) as exc:
            _log.warning("the embedded Redis does not start", error=str(exc))

"""The control plane's wiring: opens what its parts share, and puts the routes together."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
from fastapi import Depends, FastAPI

from tandemn import __version__
from tandemn.batch.leases import LeaseDesk
from tandemn.batch.redis_queue import RedisQueue
from tandemn.clock import SystemClock
from tandemn.control.access.gate import Gate
from tandemn.control.api import (
    batches,
    cost,
    deployments,
    failures,
    files,
    fleet,
    jobs,
    keys,
    metrics,
    plans,
    replicas,
    server,
    upkeep,
)
from tandemn.control.api.dependencies import same_route
from tandemn.control.clouds import Clouds
from tandemn.control.courier import Courier
from tandemn.control.embedded_redis import EmbeddedRedis
from tandemn.control.leadership import Leadership, LeaderTask, this_process, while_leading
from tandemn.control.model_shapes import ModelShapes
from tandemn.control.providers import Providers
from tandemn.control.reconcilers.billing import BillReader
from tandemn.control.reconcilers.deployment_budgets import BudgetKeeper
from tandemn.control.reconcilers.deployment_supervisor import DeploymentSupervisor
from tandemn.control.reconcilers.deployments import Hands
from tandemn.control.reconcilers.metering import MeterReader
from tandemn.control.reconcilers.retention import Retention
from tandemn.control.reconcilers.supervisor import Supervisor
from tandemn.control.services import Pulse, Services
from tandemn.control.store import replicas as replica_records
from tandemn.control.store.chunk_table import SqlChunkTable
from tandemn.control.store.database import open_database
from tandemn.control.tokens import new_token
from tandemn.errors import TandemnError
from tandemn.fleet.launchers.local import LocalLauncher
from tandemn.hub.client import Hub
from tandemn.objects import ObjectStore
from tandemn.placement.quota import QuotaReader
from tandemn.serving.certificate import trusted
from tandemn.serving.keyring import Keyring
from tandemn.settings import hf_token, hub_cache, hub_endpoint, is_hub_offline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tandemn.settings import Settings

_log = structlog.get_logger()

#: How often the embedded Redis is looked at, to start it again should it have died.
REDIS_WATCH_S = 1.0


def create_app(services: Services) -> FastAPI:
    """Put the routes together over opened services."""
    app = FastAPI(
        title="Tandemn control plane",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(same_route)],
    )
    app.state.services = services
    failures.install(app)
    for module in (
        server,
        keys,
        files,
        batches,
        jobs,
        cost,
        metrics,
        fleet,
        plans,
        deployments,
        upkeep,
        replicas,
    ):
        app.include_router(module.router)
    app.add_middleware(Gate, services=services)
    return app


@asynccontextmanager
async def open_services(settings: Settings, *, server_url: str) -> AsyncIterator[Services]:
    """Open everything, and close it again; replicas and Redis are left running."""
    home = settings.home_path
    database = open_database(settings)
    await asyncio.to_thread(database.migrate)
    if settings.redis_url is not None:
        redis_url = settings.redis_url.get_secret_value()
    else:
        redis_url = (await asyncio.to_thread(EmbeddedRedis(home).start_or_adopt)).url
    clock = SystemClock()
    queue = RedisQueue(redis_url)
    table = SqlChunkTable(database, clock)
    pulse = Pulse()
    loop = asyncio.get_running_loop()

    def on_replica_end() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(pulse.beat, "*")

    clouds = Clouds(settings, server_url=settings.public_url or server_url, on_change=on_replica_end)
    services = Services(
        settings=settings,
        clock=clock,
        database=database,
        objects=ObjectStore.open(settings.objects_url or home / "objects"),
        queue=queue,
        desk=LeaseDesk(queue, table, lease_ms=round(settings.lease_s * 1000)),
        launchers={
            "local": LocalLauncher(
                home,
                settings.local_slots,
                usd_per_hour=settings.local_usd_per_hour,
                on_end=on_replica_end,
            ),
            **clouds.launchers,
        },
        clouds=clouds,
        leadership=Leadership(
            database,
            this_process(settings.public_url or server_url),
            clock,
            lease_s=settings.leader_lease_s,
        ),
        providers=Providers(clouds.sky),
        keyring=Keyring(home / "keys"),
        quotas=QuotaReader(clock),
        shapes=ModelShapes(
            Hub(
                endpoint=hub_endpoint(),
                cache=hub_cache(),
                token=hf_token(),
                is_offline=is_hub_offline(),
            ),
            clock,
        ),
        server_url=settings.public_url or server_url,
        local_key=new_token(),
        listening_since=clock.now(),
        pulse=pulse,
    )
    if await database.run(replica_records.live):
        # Their leases may have run out while nobody could renew them; a heartbeat later they stand again.
        services = replace(services, leasing_from=clock.now() + 1.2 * settings.heartbeat_s)
    try:
        yield services
    finally:
        await services.providers.close()
        await asyncio.to_thread(clouds.close)
        await queue.aclose()
        await asyncio.to_thread(database.close)


def leader_tasks(services: Services) -> Sequence[LeaderTask]:
    """Everything that acts: made anew whenever this control plane is elected, ended when it leads no more.

    `services.database` refuses their writes as soon as another leads (code `not_leading`, which is Superseded:
    drop what was being done). What runs in every process, leader or not, stands in `keep_going`.
    """
    meter = MeterReader(
        services.database, services.keyring, services.clock, trust=partial(trusted, services.settings)
    )
    hands = _hands(services, meter)
    budgets = BudgetKeeper(services.database, services.clock, services.online)
    bills = BillReader(services.database, services.clock, services.providers.provider)
    online: list[LeaderTask] = [DeploymentSupervisor(hands, services.online), meter, bills, budgets]
    return [Supervisor(services), *online, *_couriers(services), Retention(services)]


def _couriers(services: Services) -> list[LeaderTask]:
    """Whoever tells Koi; nobody where there is no Koi."""
    settings = services.settings
    if settings.koi_service_url is None:
        return []
    courier = Courier(
        services.database,
        services.pulse,
        services.clock,
        url=settings.koi_service_url,
        timeout_s=settings.koi_timeout_s,
        keep_s=settings.koi_keep_s,
        heartbeat_s=settings.koi_heartbeat_s,
    )
    return [courier]


@asynccontextmanager
async def keep_going(services: Services) -> AsyncIterator[None]:
    """Lead where nobody else does, and keep the embedded Redis alive, until left."""
    leadership = services.leadership

    def crew(term: int) -> Sequence[LeaderTask]:
        return leader_tasks(
            replace(
                services,
                database=services.database.fenced(leadership.fence(term)),
                # Replicas of the one that led before have yet to find this one.
                listening_since=services.clock.now(),
            )
        )

    await leadership.beat()
    tasks = [
        asyncio.create_task(leadership.run(), name="beat"),
        asyncio.create_task(while_leading(leadership, crew), name="lead"),
        asyncio.create_task(services.open_requests.watch(services.database), name="open requests"),
    ]
    if services.settings.redis_url is None:
        embedded = EmbeddedRedis(services.settings.home_path)
        tasks.append(asyncio.create_task(_keep_redis(embedded), name="redis"))
    try:
        yield
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await leadership.resign()


def _hands(services: Services, meter: MeterReader) -> Hands:
    return Hands(
        database=services.database,
        clock=services.clock,
        keyring=services.keyring,
        provider=services.providers.provider,
        host=services.providers.host,
        last_reading=meter.read,
    )


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

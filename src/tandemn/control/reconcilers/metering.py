"""Reads the meters of all routers now and then, and a router's for the last time before it is taken down."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
import structlog
from pydantic import ValidationError

from tandemn.control.store import deployments, meters
from tandemn.control.store.meters import Life
from tandemn.errors import Retryable, TandemnError
from tandemn.protocol.deployments import DeploymentState
from tandemn.protocol.router import MeterPage
from tandemn.serving.keyring import KeyUse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.clock import Clock
    from tandemn.control.store.database import Database
    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.serving.keyring import Keyring

_log = structlog.get_logger()

#: Between two readings of a router. It keeps its periods for hours; this is how old a shown cost may be.
READ_S = 5.0
#: How long a router may take to answer.
ANSWER_S = 5.0
#: Routers that are read at a time.
PARALLEL = 16
#: Pages read of one router at a time: 100,000 periods; the rest comes with the next round.
MOST_PAGES = 50
#: States in which there may be a router.
_LIVING = tuple(state for state in DeploymentState if not state.has_ended)


class MeterReader:
    """A task of the leader.

    Args:
        trust: says whom it takes for a router that serves HTTPS.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        *,
        read_s: float = READ_S,
        trust: Callable[[], aiohttp.Fingerprint | bool] = lambda: True,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._read_s = read_s
        self._trust = trust
        self._room = asyncio.Semaphore(PARALLEL)

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with suppress(TandemnError):
                records = await self._database.run(deployments.all_of, _LIVING)
                await asyncio.gather(*(self._try(record) for record in records))
            await asyncio.sleep(self._read_s)

    async def halt(self) -> None:
        """A reading that is cut short is read again by the next leader."""

    async def read(self, record: DeploymentRecord) -> None:
        """Read one deployment's router.

        Raises:
            Retryable: it does not answer.
        """
        router = record.router.part if record.router is not None else None
        if router is None or router.remote is None or router.remote.url is None:
            return
        life = Life(service_name=record.service_name, created_at=record.created_at)
        admin_key = self._keyring.key(record.service_name, KeyUse.ADMIN).get_secret_value()
        latest = await self._database.run(meters.latest_series, life)
        since = 0 if latest is None else latest[1]
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {admin_key}"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            connector=aiohttp.TCPConnector(ssl=self._trust()),
        ) as http:
            for _ in range(MOST_PAGES):
                page = await _page(http, router.remote.url, since)
                known = await self._database.run(meters.position, life, page.series)
                if known < since:
                    # Its totals began anew: another series, of which nothing was read.
                    since, page = known, await _page(http, router.remote.url, known)
                await self._database.run(meters.take, life, page, since=since, now=self._clock.now())
                if not page.periods:
                    return
                since = page.next

    async def _try(self, record: DeploymentRecord) -> None:
        async with self._room:
            try:
                await self.read(record)
            except TandemnError as exc:
                # A router that boots, or is gone: the deployment's own supervisor sees to that.
                _log.debug("a meter was not read", service_name=record.service_name, error=str(exc))


async def _page(http: aiohttp.ClientSession, url: str, since: int) -> MeterPage:
    try:
        async with http.get(
            f"{url}/router/meter", params={"since": str(since)}, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                raise Retryable(f"the router's meter answered {answer.status}", code="router_unavailable")
            return MeterPage.model_validate_json(await answer.read())
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as exc:
        raise Retryable("the router's meter cannot be read", code="router_unavailable") from exc

"""Reads what providers billed, an hour at a time, and writes it down; bills of deployments that are gone come late, too."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from tandemn.control import deployment_cost
from tandemn.control.store import events
from tandemn.errors import TandemnError
from tandemn.events import EventKind
from tandemn.ledger.deployment_facts import backend_logs
from tandemn.protocol.replicas import Market
from tandemn.serving.providers.provider import Remote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from decimal import Decimal

    from sqlalchemy import Connection

    from tandemn.clock import Clock
    from tandemn.control.deployment_cost import LoggedLife
    from tandemn.control.store.database import Database
    from tandemn.ledger.deployment_facts import BackendLog
    from tandemn.serving.providers.provider import Provider

_log = structlog.get_logger()

#: Bills are by the hour.
HOUR_S: Final = 3600.0
#: How long after its end an hour is taken to be on the bill completely.
LAG_S: Final = 3600.0
#: How long after it went a deployment's bill is still asked for: a provider that has none would be asked for ever.
LATE_S: Final = 3 * 24 * HOUR_S
#: Between two looks whether another hour is.
LOOK_S = 300.0
#: How long a provider may take to answer.
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A bill to be read."""

    service_name: str
    backend: str
    provider: str
    account: str
    market: str
    remote: Remote
    start: float
    end: float


def due(logged: LoggedLife, now: float) -> Iterator[Due]:
    """Say which bills of a deployment reach further than those that were read (PURE)."""
    read = {
        (event.data["account"], event.data["start"]): event.data["end"]
        for event in logged.events
        if event.kind == EventKind.BACKEND_BILLED
    }
    for name, log in backend_logs(logged.events).items():
        terms = log.terms[0]
        remote = _remote(logged, name, log)
        is_over = log.gone_at is not None and now > log.gone_at + LATE_S
        if terms.market != Market.SERVERLESS or remote is None or is_over:
            continue
        start = math.floor(terms.since / HOUR_S) * HOUR_S
        end = math.floor((now - LAG_S) / HOUR_S) * HOUR_S
        if log.gone_at is not None:
            end = min(end, math.ceil(log.gone_at / HOUR_S) * HOUR_S)
        if end > max(start, read.get((terms.account, start), 0.0)):
            yield Due(
                service_name=logged.life.service_name,
                backend=name,
                provider=terms.provider,
                account=terms.account,
                market=terms.market,
                remote=remote,
                start=start,
                end=end,
            )


def _remote(logged: LoggedLife, backend: str, log: BackendLog) -> Remote | None:
    """What the provider knows it by: the last id that was seen."""
    for event in reversed(logged.events):
        is_of_it = event.kind == EventKind.BACKEND_STATE and event.data.get("backend") == backend
        if is_of_it and event.data.get("remote_id"):
            return Remote(
                provider=log.terms[0].provider,
                remote_name=event.data["remote_name"],
                remote_id=event.data["remote_id"],
                place=event.data.get("place") or "",
            )
    return None


class BillReader:
    """A task of the leader.

    Args:
        provider: opens a provider by its name; raises what the seam says.
    """

    def __init__(
        self, database: Database, clock: Clock, provider: Callable[[str], Awaitable[Provider]]
    ) -> None:
        self._database = database
        self._clock = clock
        self._provider = provider

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with suppress(TandemnError):
                await self.read()
            await asyncio.sleep(LOOK_S)

    async def halt(self) -> None:
        """A reading that is cut short is repeated by the next leader."""

    async def read(self) -> None:
        """Read every bill that is due; one that cannot be read is due again."""
        now = self._clock.now()
        for logged in await self._database.run(deployment_cost.lives):
            for each in due(logged, now):
                try:
                    await self._read(each)
                except TandemnError as exc:
                    _log.warning("a bill was not read", service_name=each.service_name, error=str(exc))

    async def _read(self, each: Due) -> None:
        provider = await self._provider(each.provider)
        try:
            async with asyncio.timeout(ANSWER_S):
                usage = await provider.usage(each.remote, each.start, each.end)
        except TimeoutError:
            return
        if usage.source != "billed" or usage.usd is None or usage.usd < 0:
            return
        await self._database.run(_write, each, usage.usd, now=self._clock.now())


def _write(connection: Connection, each: Due, usd: Decimal, *, now: float) -> None:
    events.append(
        connection,
        EventKind.BACKEND_BILLED,
        now=now,
        service_name=each.service_name,
        backend=each.backend,
        account=each.account,
        market=each.market,
        start=each.start,
        end=each.end,
        usd=str(usd),
    )

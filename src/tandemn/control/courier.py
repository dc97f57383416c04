"""Brings callbacks to Koi: each job's in order, each at least once, tried again until taken or given up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from tandemn.control.store import events, outbox
from tandemn.errors import TandemnError
from tandemn.events import EventKind
from tandemn.koi import delivery
from tandemn.koi.client import KoiClient, Refused
from tandemn.koi.recommendation import Unused

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.clock import Clock
    from tandemn.control.services import Pulse
    from tandemn.control.store.database import Database
    from tandemn.control.store.outbox import Waiting

_log = structlog.get_logger()

#: How often the outbox is looked at when nothing wakes the courier.
TICK_S = 1.0
#: Between two looks, however often it is woken.
BREATH_S = 0.1
#: Jobs whose callbacks are under way at a time.
PARALLEL = 8
#: Callbacks of one job that are given up in one transaction.
DROPPED_AT_ONCE = 500


class Courier:
    """The one courier of the control plane that leads.

    Args:
        database: where the outbox is.
        pulse: wakes it: what is written was caused by something that beats it.
        clock: tells ages and waits.
        url: where Koi is.
        timeout_s: for one delivery.
        keep_s: how long a callback that Koi does not take is kept.
        heartbeat_s: how often Koi is told that a launch goes on.
    """

    def __init__(
        self,
        database: Database,
        pulse: Pulse,
        clock: Clock,
        *,
        url: str,
        timeout_s: float,
        keep_s: float,
        heartbeat_s: float,
    ) -> None:
        self._database, self._pulse, self._clock = database, pulse, clock
        self._url, self._timeout_s = url, timeout_s
        self._keep_s, self._heartbeat_s = keep_s, heartbeat_s
        self._is_halted = False
        self._is_new = True
        self._is_down = False
        self._told: dict[str, int] = {}
        self._next_pulse = 0.0

    async def halt(self) -> None:
        """Begin no delivery any more. One that is cut short is made again by the next courier."""
        self._is_halted = True

    async def run(self) -> None:
        """Go on until cancelled or halted."""
        async with KoiClient(self._url, self._timeout_s) as client:
            while not self._is_halted:
                # From before the look on: what is written during it asks for another.
                woken = asyncio.ensure_future(self._pulse.wait("*", TICK_S))
                try:
                    await self._tell_of_launches()
                    is_busy = await self._round(client)
                except TandemnError as exc:
                    _log.warning("cannot look for callbacks", error=str(exc))
                    is_busy = False
                await asyncio.sleep(BREATH_S)
                if is_busy:
                    woken.cancel()
                else:
                    await woken

    async def _tell_of_launches(self) -> None:
        now, every_s = self._clock.now(), self._heartbeat_s
        if now >= self._next_pulse:
            self._next_pulse = now + every_s / 2
            self._told = await self._database.run(
                outbox.tell_of_launches, self._told, now=now, every_s=every_s
            )

    async def _round(self, client: KoiClient) -> bool:
        """Bring the oldest callback of each of some jobs; True: one was taken, so that there may be more."""
        if self._is_new:
            await self._database.run(outbox.wake)
            self._is_new = False
        heads = await self._database.run(outbox.due, now=self._clock.now(), limit=PARALLEL)
        taken = await asyncio.gather(*(self._deliver(client, head) for head in heads))
        return any(taken)

    async def _deliver(self, client: KoiClient, head: Waiting) -> bool:
        answer = await client.post(head.path, head.body.encode())
        if isinstance(answer, Unused):
            await self._keep_or_drop(head, answer)
            return False
        was_down, self._is_down = self._is_down, False

        def record(connection: Connection) -> None:
            outbox.forget(connection, head.seq)
            if was_down:
                outbox.wake(connection)

        await self._database.run(record)
        return True

    async def _keep_or_drop(self, head: Waiting, fault: Unused) -> None:
        is_refused = isinstance(fault, Refused) and fault.is_final
        self._is_down = self._is_down or not isinstance(fault, Refused)
        now = self._clock.now()
        verdict = delivery.after_failure(
            tries=head.tries + 1,
            emitted_at=head.emitted_at,
            now=now,
            keep_s=self._keep_s,
            is_refused=is_refused,
        )
        if isinstance(verdict, delivery.Again):
            await self._database.run(outbox.wait, head.seq, not_before=verdict.not_before, fault=fault.reason)
            return
        reason = f"{verdict.reason}; the last time: {fault.reason}"

        def drop(connection: Connection) -> list[Waiting]:
            dropped = [head] if outbox.forget(connection, head.seq) else []
            if not is_refused:
                # Those behind it are as old, and would be tried in vain one by one.
                dropped += outbox.forget_older(
                    connection, head.job_id, before=now - self._keep_s, limit=DROPPED_AT_ONCE
                )
            for each in dropped:
                events.append(
                    connection,
                    EventKind.KOI_CALLBACK_DROPPED,
                    now=now,
                    job_id=each.job_id,
                    event_id=each.event_id,
                    path=each.path,
                    tries=each.tries + (each.seq == head.seq),
                    reason=reason,
                )
            return dropped

        for each in await self._database.run(drop):
            _log.warning(
                "callback to Koi dropped",
                job_id=each.job_id,
                event_id=each.event_id,
                path=each.path,
                reason=reason,
            )

"""Leases chunks ahead, so that the engine stays full across their borders."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.protocol.replicas import LeaseReply, LeaseRequest
from tandemn.runner.chunks import Phase
from tandemn.runner.concurrency import Holding, chunks_wanted
from tandemn.runner.retry import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.client import ReplicaClient
    from tandemn.runner.chunks import Chunks
    from tandemn.runner.feeder import Feeder

#: The control plane may hold back its answer for so long: with nothing to do, and while there is work.
IDLE_POLL_S, BUSY_POLL_S = 20.0, 2.0

#: Between two looks at what is in hand, and after an answer without chunks.
_PAUSE_S = 0.25


class LeaseLoop:
    """Runs until cancelled, or until `drain`."""

    def __init__(
        self, client: ReplicaClient, chunks: Chunks, feeder: Feeder, on_orders: Callable[[str], None]
    ) -> None:
        self._client = client
        self._chunks = chunks
        self._feeder = feeder
        self._on_orders = on_orders
        self._is_draining = False

    def drain(self) -> None:
        """Lease nothing more."""
        self._is_draining = True
        self._chunks.changed.set()

    async def run(self) -> None:
        while not self._is_draining:
            if not chunks_wanted(self._holding()):
                await self._pause()
                continue
            reply = await patiently(self._ask, "lease")
            self._on_orders(reply.orders)
            for lease in reply.leases:
                self._chunks.add(lease)
            if not reply.leases:
                await asyncio.sleep(_PAUSE_S)

    async def _ask(self) -> LeaseReply:
        # Reckoned for each try: while the control plane was away the work in hand has become less.
        is_idle = self._feeder.is_idle and not self._chunks.unsent
        wanted = chunks_wanted(self._holding())
        wait_s = IDLE_POLL_S if is_idle else BUSY_POLL_S
        if not wanted:
            return LeaseReply()
        return await self._client.lease(LeaseRequest(limit=wanted, wait_s=wait_s, is_idle=is_idle))

    def _holding(self) -> Holding:
        return Holding(
            held=len(self._chunks),
            not_begun=self._chunks.count(Phase.LEASED),
            unsent=self._chunks.unsent + self._feeder.waiting,
            limit=self._feeder.limit,
            requests_per_s=self._feeder.requests_per_s(),
            requests_per_chunk=self._chunks.requests_per_chunk,
        )

    async def _pause(self) -> None:
        """Wait for a change, or until some requests more have been sent."""
        self._chunks.changed.clear()
        try:
            async with asyncio.timeout(_PAUSE_S):
                await self._chunks.changed.wait()
        except TimeoutError:
            pass

"""Leasing chunks to replicas: the queue proposes, the chunk table disposes.

The queue says who holds what now. A grant is recorded in the table before its holder hears of it, and a
completion counts only if the table's recorded token is the holder's: so a chunk is never completed by one
whose lease was taken away, whatever the queue has forgotten. Where the queue is of another epoch or gone,
it is rebuilt from the table under a new epoch, and no token given before is valid again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tandemn.batch.queue import kept_for
from tandemn.errors import Conflict, LeaseLost, QueueLost, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tandemn.batch.chunk_table import ChunkResult, ChunkRow, ChunkTable
    from tandemn.batch.queue import ChunkQueue, QueueCounts, Token

R = TypeVar("R")

#: How often one call rebuilds a queue that is lost again in the same moment.
_REBUILDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A chunk, given to a holder, with all that the table knows of it."""

    row: ChunkRow
    token: Token


class LeaseDesk:
    """The one place where chunks are given, renewed, completed and taken back."""

    def __init__(self, queue: ChunkQueue, table: ChunkTable, *, lease_ms: int) -> None:
        self._queue = queue
        self._table = table
        self._lease_ms = lease_ms
        self._epochs: dict[str, int] = {}
        self._rebuilding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def open(self, job_id: str) -> None:
        """See that the job has a queue of its own epoch that knows every unfinished chunk; else rebuild it.

        For a job just planned, after a restart, and as an audit now and then.
        """

        async def audit(epoch: int) -> None:
            known = set(await self._queue.held(job_id, epoch=epoch))
            # Read after: a chunk completed in between is out of the table's list, and harmless in the queue's.
            if missing := [each for each in await self._table.unfinished(job_id) if each not in known]:
                raise QueueLost(f"the queue of {job_id} lacks chunk {missing[0]}", object_id=job_id)

        await self._in_epoch(job_id, audit)

    async def lease(self, job_id: str, *, holder: str, limit: int, steal: bool = False) -> list[Lease]:
        """Give up to `limit` chunks; empty where there is nothing to give.

        With `steal`, for a holder that has nothing to do: a chunk that a peer holds but has not begun.

        Raises:
            Conflict: the job does not compute (code `job_not_running`).
            QueueUnavailable, StoreUnavailable: try again.
        """

        async def lease(epoch: int) -> list[Lease]:
            grants = await self._queue.lease(
                job_id, epoch=epoch, holder=holder, limit=limit, lease_ms=self._lease_ms, steal=steal
            )
            if not grants:
                return []
            tokens = [(grant.chunk, grant.token) for grant in grants]
            try:
                rows = await self._table.grant(job_id, holder=holder, grants=tokens)
            except BaseException:
                # Not recorded, so not given: else these would wait for their leases to run out.
                for chunk, token in reversed(tokens):
                    with suppress(LeaseLost, QueueLost, QueueUnavailable):
                        await self._queue.release(job_id, chunk=chunk, token=token)
                raise
            for chunk, token in tokens:
                if chunk not in rows:
                    # Done already: its holder died, or we did, between the table and the queue.
                    with suppress(LeaseLost, QueueLost):
                        await self._queue.complete(job_id, chunk=chunk, token=token)
            return [Lease(row=rows[chunk], token=token) for chunk, token in tokens if chunk in rows]

        return await self._in_epoch(job_id, lease)

    async def begin(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Mark a lease as begun, so that no idle peer takes it. Raises LeaseLost."""
        try:
            await self._queue.begin(job_id, chunk=chunk, token=token)
        except QueueLost as exc:
            await self._reopen(job_id)
            raise LeaseLost(exc.message, object_id=job_id) from exc

    async def renew(self, job_id: str, *, holder: str, tokens: Mapping[int, Token]) -> list[int]:
        """Extend the holder's leases; return the chunks that it does not hold any more."""
        if not tokens:
            return []
        try:
            epoch = await self._epoch(job_id)
            return await self._queue.renew(
                job_id, epoch=epoch, holder=holder, tokens=tokens, lease_ms=self._lease_ms
            )
        except QueueLost:
            await self._reopen(job_id)
        except Conflict:
            pass  # sealed meanwhile
        return list(tokens)

    async def complete(
        self, job_id: str, *, holder: str, chunk: int, token: Token, result: ChunkResult
    ) -> None:
        """Count the chunk as done, if the lease stands. Safe to repeat after a lost reply. Raises LeaseLost."""
        if not await self._table.complete(job_id, chunk=chunk, token=token, holder=holder, result=result):
            raise LeaseLost(f"chunk {chunk} of {job_id} is not held under token {token}", object_id=job_id)
        # Should this fail, the lease runs out and the next grant finds the chunk done.
        with suppress(LeaseLost, QueueLost, QueueUnavailable):
            await self._queue.complete(job_id, chunk=chunk, token=token)

    async def release(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Take a chunk back that its holder gives up; dropped where it does not hold it."""
        with suppress(LeaseLost, QueueLost):
            await self._table.give_back(job_id, chunk=chunk, token=token)
            await self._queue.release(job_id, chunk=chunk, token=token)

    async def revoke(self, job_id: str, *, holder: str, delay_ms: int = 0) -> list[int]:
        """Take back all that `holder` holds; it can complete none of it from now on.

        With `delay_ms` nobody else is given the chunks until then (or until `free`): the holder was told
        to end and may still store what it finished, which the next one then need not compute.
        """

        async def revoke(epoch: int) -> list[int]:
            return await self._queue.revoke(job_id, epoch=epoch, holder=holder, delay_ms=delay_ms)

        try:
            revoked = await self._in_epoch(job_id, revoke)
        except Conflict:
            return []
        await self._table.take_back(job_id, holder=holder)
        return revoked

    async def free(self, job_id: str, *, holder: str) -> list[int]:
        """Give out what a delayed `revoke` keeps back for `holder`: it has ended."""
        return await self.revoke(job_id, holder=kept_for(holder))

    async def counts(self, job_id: str) -> QueueCounts:
        async def counts(epoch: int) -> QueueCounts:
            return await self._queue.counts(job_id, epoch=epoch)

        return await self._in_epoch(job_id, counts)

    async def forget(self, job_id: str) -> None:
        """Leave nothing of the job in the queue."""
        self._epochs.pop(job_id, None)
        self._rebuilding.pop(job_id, None)
        await self._queue.drop(job_id)

    async def _reopen(self, job_id: str) -> None:
        """Mend a queue that turned out to be lost; a job that was sealed meanwhile needs none."""
        with suppress(Conflict):
            await self.open(job_id)

    async def _in_epoch(self, job_id: str, call: Callable[[int], Awaitable[R]]) -> R:
        """Call with the job's epoch; where the queue is of another, rebuild it and call again."""
        lost: QueueLost | None = None
        for _ in range(_REBUILDS):
            epoch = await self._epoch(job_id)
            try:
                return await call(epoch)
            except QueueLost as exc:
                lost = exc
                await self._rebuild(job_id, believed=epoch, reason=exc.message)
        raise QueueUnavailable(
            f"the queue of {job_id} was lost {_REBUILDS} times in a row: {lost}",
            next_step="is Redis out of memory, or do two control planes share it by mistake?",
        )

    async def _epoch(self, job_id: str) -> int:
        if job_id not in self._epochs:
            self._epochs[job_id] = await self._read_epoch(job_id)
        return self._epochs[job_id]

    async def _read_epoch(self, job_id: str) -> int:
        epoch = await self._table.epoch(job_id)
        if epoch is None:
            raise Conflict(f"job {job_id} does not compute", code="job_not_running", object_id=job_id)
        return epoch

    async def _rebuild(self, job_id: str, *, believed: int, reason: str) -> None:
        async with self._rebuilding[job_id]:
            if self._epochs.get(job_id) != believed:
                return  # another call rebuilt it while this one waited
            current = await self._read_epoch(job_id)
            if current == believed:
                bumped = await self._table.bump_epoch(job_id, frm=current, reason=reason)
                current = bumped if bumped is not None else await self._read_epoch(job_id)
                if bumped is not None:
                    await self._queue.load(job_id, epoch=bumped, chunks=await self._table.unfinished(job_id))
            self._epochs[job_id] = current

"""The chunk queue in plain Python, for simulations and tests: the same rules as the scripts in `lua/`.

A stateful property test holds it equal to `RedisQueue`, so that what a simulation shows of one is true of
the other. It lives and dies with its process.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandemn.batch.queue import Grant, QueueCounts, Token, kept_for, lease_lost, queue_lost

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tandemn.clock import Clock


@dataclass(slots=True)
class _Lease:
    sequence: int
    holder: str
    deadline_ms: int
    begun: bool = False


@dataclass(slots=True)
class _Job:
    epoch: int
    sequence: int
    pending: deque[tuple[int, bool]]
    """Chunks, next one first, and whether each was held before in this epoch."""
    leases: dict[int, _Lease] = field(default_factory=dict)
    deadlines: list[tuple[int, int, int]] = field(default_factory=list)
    """Heap of (deadline in ms, chunk, sequence); entries of ended or renewed leases stay until they surface."""

    def give_back(self, chunks: Iterable[int]) -> None:
        for chunk in sorted(chunks, reverse=True):
            del self.leases[chunk]
            self.pending.appendleft((chunk, True))

    def set_deadline(self, chunk: int, lease: _Lease, deadline_ms: int) -> None:
        lease.deadline_ms = deadline_ms
        heapq.heappush(self.deadlines, (deadline_ms, chunk, lease.sequence))

    def take_expired(self, now_ms: int) -> set[int]:
        expired: set[int] = set()
        while self.deadlines and self.deadlines[0][0] <= now_ms:
            deadline_ms, chunk, sequence = heapq.heappop(self.deadlines)
            lease = self.leases.get(chunk)
            if lease and lease.sequence == sequence and lease.deadline_ms == deadline_ms:
                expired.add(chunk)
        return expired

    def stealable(self, thief: str) -> int | None:
        """The last grant that its holder has not begun, of the holder that has most of those."""
        idle = [(lease.sequence, lease.holder, chunk) for chunk, lease in self.leases.items()]
        idle = [entry for entry in idle if entry[1] != thief and not self.leases[entry[2]].begun]
        count = Counter(holder for _, holder, _ in idle)
        if not idle:
            return None
        # Within the holder, and between holders of equally many, the later grant decides.
        return max(idle, key=lambda entry: (count[entry[1]], entry[0]))[2]


class MemoryQueue:
    """`ChunkQueue` in this process's memory; leases end by the clock it is given."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: dict[str, _Job] = {}

    async def load(self, job_id: str, *, epoch: int, chunks: Sequence[int]) -> None:
        """See `ChunkQueue.load`."""
        old = self._jobs.get(job_id)
        if old and old.epoch > epoch:
            raise queue_lost(job_id, epoch)
        pending = deque((chunk, False) for chunk in chunks)
        self._jobs[job_id] = _Job(epoch, old.sequence if old else 0, pending)

    async def lease(
        self, job_id: str, *, epoch: int, holder: str, limit: int, lease_ms: int, steal: bool = False
    ) -> list[Grant]:
        """See `ChunkQueue.lease`."""
        job = self._job(job_id, epoch)
        now_ms = self._now_ms()
        job.give_back(job.take_expired(now_ms))
        taken = [job.pending.popleft() for _ in range(min(limit, len(job.pending)))]
        if not taken and limit > 0 and steal:
            chunk = job.stealable(holder)
            taken = [] if chunk is None else [(chunk, True)]
        job.sequence = max(job.sequence, now_ms * 1000 - 1) if taken else job.sequence
        grants = []
        for chunk, regrant in taken:
            job.sequence += 1
            lease = _Lease(job.sequence, holder, 0)
            job.leases[chunk] = lease
            job.set_deadline(chunk, lease, now_ms + lease_ms)
            grants.append(Grant(chunk=chunk, token=Token(epoch, job.sequence), regrant=regrant))
        return grants

    async def begin(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.begin`."""
        self._current(job_id, chunk, token).leases[chunk].begun = True

    async def renew(
        self, job_id: str, *, holder: str, tokens: Mapping[int, Token], lease_ms: int, epoch: int
    ) -> list[int]:
        """See `ChunkQueue.renew`."""
        job = self._job(job_id, epoch)
        deadline_ms = self._now_ms() + lease_ms
        lost = []
        for chunk, token in tokens.items():
            lease = job.leases.get(chunk)
            if lease and Token(epoch, lease.sequence) == token and lease.holder == holder:
                job.set_deadline(chunk, lease, deadline_ms)
            else:
                lost.append(chunk)
        return lost

    async def complete(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.complete`."""
        del self._current(job_id, chunk, token).leases[chunk]

    async def release(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.release`."""
        self._current(job_id, chunk, token).give_back([chunk])

    async def revoke(self, job_id: str, *, epoch: int, holder: str, delay_ms: int = 0) -> list[int]:
        """See `ChunkQueue.revoke`."""
        job = self._job(job_id, epoch)
        chunks = sorted(chunk for chunk, lease in job.leases.items() if lease.holder == holder)
        if delay_ms == 0:
            job.give_back(chunks)
        elif chunks:
            now_ms = self._now_ms()
            job.sequence = max(job.sequence, now_ms * 1000 - 1)
            for chunk in chunks:
                job.sequence += 1
                kept = job.leases[chunk] = _Lease(job.sequence, kept_for(holder), 0, begun=True)
                job.set_deadline(chunk, kept, now_ms + delay_ms)
        return chunks

    async def counts(self, job_id: str, *, epoch: int) -> QueueCounts:
        """See `ChunkQueue.counts`."""
        job = self._job(job_id, epoch)
        by_holder = Counter(lease.holder for lease in job.leases.values())
        return QueueCounts(pending=len(job.pending), leased=len(job.leases), by_holder=dict(by_holder))

    async def held(self, job_id: str, *, epoch: int) -> list[int]:
        """See `ChunkQueue.held`."""
        job = self._job(job_id, epoch)
        return [*job.leases, *(chunk for chunk, _ in job.pending)]

    async def drop(self, job_id: str) -> None:
        """See `ChunkQueue.drop`."""
        self._jobs.pop(job_id, None)

    def forget(self) -> None:
        """Lose everything, as a Redis does that was emptied or lost its disk."""
        self._jobs.clear()

    def _job(self, job_id: str, epoch: int) -> _Job:
        job = self._jobs.get(job_id)
        if job is None or job.epoch != epoch:
            raise queue_lost(job_id, epoch)
        return job

    def _current(self, job_id: str, chunk: int, token: Token) -> _Job:
        job = self._jobs.get(job_id)
        if job is None or job.epoch < token.epoch:
            raise queue_lost(job_id, token.epoch)
        lease = job.leases.get(chunk)
        if lease is None or Token(job.epoch, lease.sequence) != token:
            raise lease_lost(job_id, chunk, token)
        return job

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

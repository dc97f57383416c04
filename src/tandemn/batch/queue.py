"""The chunk queue's seam: who holds which chunk now, and until when.

It knows nothing else: the database says which chunks a job has and which are done, and the queue can
be rebuilt from it at any time (`load` with a higher epoch). Two implementations are held equal by a
stateful property test: `RedisQueue` (each operation one atomic script) and `MemoryQueue` (for the
simulator, and for tests of users).

Fencing: every grant has a token (epoch, sequence) that is never given twice. The epoch lives in the
database; every operation names the epoch that it believes in and raises `QueueLost` where the queue has
another one or none, which means that the queue must be rebuilt or the database read again. A token of an
older epoch is the holder's loss, not the queue's: it raises `LeaseLost`. Sequences never repeat within an
epoch, not even where a queue forgets its last seconds; a job that was dropped comes back with a higher epoch.

A lease that has ended stays current until another call of `lease` takes it back: a late holder that nobody
was waiting behind may still renew or complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tandemn.errors import LeaseLost, QueueLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """Fencing token of one grant; greater means later."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read `str(token)`; ValueError where it is not one."""
        epoch, _, sequence = text.partition("-")
        return cls(int(epoch), int(sequence))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A chunk, given to a holder."""

    chunk: int
    token: Token
    regrant: bool
    """Whether it was held before in this epoch: parts of it may be stored already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    pending: int
    leased: int
    by_holder: Mapping[str, int]
    """Only holders that hold something."""


def kept_for(holder: str) -> str:
    """Return the name under which revoked chunks are kept while `holder` stores what it finished of them."""
    return f"{holder}~"


class ChunkQueue(Protocol):
    """All times are the queue's own clock; all methods raise QueueUnavailable where it does not answer.

    What is said to go to the front of the queue goes there lowest chunk first.
    """

    async def load(self, job_id: str, *, epoch: int, chunks: Sequence[int]) -> None:
        """Make the job's queue exactly these chunks, pending in this order, nothing leased.

        Raises:
            QueueLost: a queue of a higher epoch is there already: another server rebuilt it.
        """
        ...

    async def lease(
        self, job_id: str, *, epoch: int, holder: str, limit: int, lease_ms: int, steal: bool = False
    ) -> list[Grant]:
        """Give up to `limit` chunks: expired leases are returned to pending first, then pending ones are
        given in order. With `steal` and nothing pending, one chunk that its holder has not begun is taken
        from the holder (not this one) that has most of those: its last one.
        """
        ...

    async def begin(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Say that work on the chunk begins: from now on it cannot be stolen. Raises LeaseLost."""
        ...

    async def renew(
        self, job_id: str, *, holder: str, tokens: Mapping[int, Token], lease_ms: int, epoch: int
    ) -> list[int]:
        """Extend the holder's leases; return the chunks whose token is no longer the current one."""
        ...

    async def complete(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Take the chunk out of the queue for good. Raises LeaseLost where the token is not current."""
        ...

    async def release(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Give the chunk back to the front of the queue. Raises LeaseLost where the token is not current."""
        ...

    async def revoke(self, job_id: str, *, epoch: int, holder: str, delay_ms: int = 0) -> list[int]:
        """Take back all that the holder holds, to the front of the queue; return those chunks.

        With `delay_ms` they are kept back for that long, under new tokens and the name `kept_for(holder)`,
        which a further `revoke` frees before its time. Nobody can steal them meanwhile.
        """
        ...

    async def counts(self, job_id: str, *, epoch: int) -> QueueCounts: ...

    async def held(self, job_id: str, *, epoch: int) -> list[int]:
        """Every chunk that the queue knows, pending or leased, in no order (the audit compares it with the database)."""
        ...

    async def drop(self, job_id: str) -> None:
        """Forget the job: no key of it remains."""
        ...


def queue_lost(job_id: str, epoch: int) -> QueueLost:
    """Make the error of a queue that does not have this epoch of the job."""
    return QueueLost(
        f"the queue does not have epoch {epoch} of job {job_id}",
        next_step="read the job's epoch again, and rebuild the queue where it is the same",
        object_id=job_id,
    )


def lease_lost(job_id: str, chunk: int, token: Token) -> LeaseLost:
    """Make the error of a token that is not the chunk's current one."""
    return LeaseLost(
        f"chunk {chunk} of job {job_id} is not held under token {token} any more", object_id=job_id
    )

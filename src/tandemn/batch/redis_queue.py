"""The chunk queue on Redis: each operation is one atomic script, whoever else talks to the server.

The scripts (`lua/`) hold every rule; this module names keys, passes arguments and reads answers.
`MemoryQueue` is the same queue in plain Python. Keys of a job share one hash tag, so that they lie on one
node of a Redis Cluster.

A lost reply: where a call raises QueueUnavailable, its operation may or may not have taken place, for
nothing is sent twice by itself. `load`, `renew`, `revoke`, `begin`, `counts`, `held` and `drop` can simply
be called again. A `lease` whose answer was lost has granted chunks that nobody knows of; they come back
when the lease ends. A `complete` or `release` that is called again raises LeaseLost both where its first
try was carried out and where the lease was taken away: the caller must then ask the database, and a chunk
that is in neither (`held` lacks it, the database has it open) is put back by a `load` with a higher epoch.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tandemn.batch.queue import Grant, QueueCounts, Token, lease_lost, queue_lost
from tandemn.batch.redis_lane import TIMEOUT_S, RedisLane, Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tandemn.clock import Clock

#: Chunks in one part of a load: some 50 kB, a few milliseconds of the server's time.
LOAD_PART = 5_000
#: How long the parts of an unfinished load are kept, in ms.
STAGING_MS = 600_000
#: What a script answers instead of a result; see lua/prelude.lua.
_LOST = -1
_STALE = -2


class RedisQueue:
    """`ChunkQueue` on a Redis server, version 5 or later, over one connection.

    Belongs to the event loop that first uses it. Any number of tasks may call it at a time; what they ask
    in one turn of the loop travels together, and with `appendfsync always` is synced together.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        timeout_s: how long the server may take to answer.
        clock: the time of leases, instead of the server's own; for tests.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, clock: Clock | None = None) -> None:
        self._lane = RedisLane(url, timeout_s=timeout_s)
        self._clock = clock
        self._scripts = _scripts()

    async def aclose(self) -> None:
        """Close the connection; calls under way raise QueueUnavailable."""
        await self._lane.aclose()

    async def ping(self) -> None:
        """Raise QueueUnavailable where the server does not answer."""
        await self._lane.call(("PING",))

    async def run_id(self) -> str:
        """The server process's own random name: another one means that it was started anew."""
        answer: Mapping[str, Any] = await self._lane.call(("INFO", "server"))
        return str(answer["run_id"])

    async def load(self, job_id: str, *, epoch: int, chunks: Sequence[int]) -> None:
        """See `ChunkQueue.load`; also raises QueueLost where another load overtakes this one."""
        name = secrets.token_hex(8)
        parts = [chunks[i : i + LOAD_PART] for i in range(0, len(chunks), LOAD_PART)] or [()]
        for i, part in enumerate(parts):
            first, last = int(i == 0), int(i == len(parts) - 1)
            head = (epoch, name, first, last, len(chunks), STAGING_MS)
            answer = await self._call("load", job_id, (*head, *part))
            if answer == _LOST:
                raise queue_lost(job_id, epoch)

    async def lease(
        self, job_id: str, *, epoch: int, holder: str, limit: int, lease_ms: int, steal: bool = False
    ) -> list[Grant]:
        """See `ChunkQueue.lease`."""
        answer = await self._call(
            "lease", job_id, (epoch, holder, limit, lease_ms, int(steal), self._now_ms())
        )
        if answer == _LOST:
            raise queue_lost(job_id, epoch)
        triples = zip(answer[::3], answer[1::3], answer[2::3], strict=True)
        return [
            Grant(chunk=chunk, token=Token(epoch, sequence), regrant=regrant == 1)
            for chunk, sequence, regrant in triples
        ]

    async def begin(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.begin`."""
        await self._with_token("begin", job_id, chunk, token)

    async def renew(
        self, job_id: str, *, holder: str, tokens: Mapping[int, Token], lease_ms: int, epoch: int
    ) -> list[int]:
        """See `ChunkQueue.renew`."""
        arguments: list[int | str] = [epoch, holder, lease_ms, self._now_ms()]
        for chunk, token in tokens.items():
            # No grant has the sequence 0, so that a token of another epoch is answered as lost.
            arguments += (chunk, token.sequence if token.epoch == epoch else 0)
        answer = await self._call("renew", job_id, arguments)
        if answer == _LOST:
            raise queue_lost(job_id, epoch)
        return list(answer)

    async def complete(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.complete`; and this module's text for what a lost reply means."""
        await self._with_token("complete", job_id, chunk, token)

    async def release(self, job_id: str, *, chunk: int, token: Token) -> None:
        """See `ChunkQueue.release`."""
        await self._with_token("release", job_id, chunk, token)

    async def revoke(self, job_id: str, *, epoch: int, holder: str, delay_ms: int = 0) -> list[int]:
        """See `ChunkQueue.revoke`; the chunks come in ascending order."""
        answer = await self._call("revoke", job_id, (epoch, holder, delay_ms, self._now_ms()))
        if answer == _LOST:
            raise queue_lost(job_id, epoch)
        return sorted(answer)

    async def counts(self, job_id: str, *, epoch: int) -> QueueCounts:
        """See `ChunkQueue.counts`."""
        answer = await self._call("counts", job_id, (epoch,))
        if answer == _LOST:
            raise queue_lost(job_id, epoch)
        pending, *holders = answer
        by_holder: dict[str, int] = {}
        for holder in map(bytes.decode, holders):
            by_holder[holder] = by_holder.get(holder, 0) + 1
        return QueueCounts(pending=pending, leased=len(holders), by_holder=by_holder)

    async def held(self, job_id: str, *, epoch: int) -> list[int]:
        """See `ChunkQueue.held`."""
        answer = await self._call("held", job_id, (epoch,))
        if answer == _LOST:
            raise queue_lost(job_id, epoch)
        return [int(chunk) for page in answer for chunk in page.replace(b"r", b"").split()]

    async def drop(self, job_id: str) -> None:
        """See `ChunkQueue.drop`."""
        await self._lane.call(("UNLINK", *_keys(job_id)))

    async def _with_token(self, operation: str, job_id: str, chunk: int, token: Token) -> None:
        answer = await self._call(operation, job_id, (token.epoch, chunk, token.sequence))
        if answer == _LOST:
            raise queue_lost(job_id, token.epoch)
        if answer == _STALE:
            raise lease_lost(job_id, chunk, token)

    async def _call(self, operation: str, job_id: str, arguments: Iterable[int | str]) -> Any:
        script = self._scripts[operation]
        keys = _keys(job_id) if operation == "load" else _keys(job_id)[:4]
        return await self._lane.call(("EVALSHA", script.sha, len(keys), *keys, *arguments), script)

    def _now_ms(self) -> int | str:
        return "" if self._clock is None else int(self._clock.now() * 1000)


@lru_cache(maxsize=1024)
def _keys(job_id: str) -> tuple[str, ...]:
    assert job_id, "an empty hash tag would spread the keys of a job over a cluster"
    assert "}" not in job_id, "the hash tag would end early"
    names = ("meta", "pending", "leases", "deadlines", "staging", "loader")
    return tuple(f"tandemn:{{{job_id}}}:{name}" for name in names)


@lru_cache(maxsize=1)
def _scripts() -> dict[str, Script]:
    folder = files("tandemn.batch").joinpath("lua")
    prelude = folder.joinpath("prelude.lua").read_text()
    names = ("load", "lease", "begin", "renew", "complete", "release", "revoke", "counts", "held")
    return {name: Script(prelude + folder.joinpath(f"{name}.lua").read_text()) for name in names}

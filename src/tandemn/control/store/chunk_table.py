"""The chunk table in the database, behind the seam that the lease desk knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control.store import chunks, events, jobs, replicas
from tandemn.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from tandemn.batch.chunk_table import ChunkResult, ChunkRow
    from tandemn.batch.queue import Token
    from tandemn.clock import Clock
    from tandemn.control.store.database import Database


class SqlChunkTable:
    """`ChunkTable` on SQL; completions are events and count for their replica in the same transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def epoch(self, job_id: str) -> int | None:
        job = await self._database.run(jobs.get, job_id)
        return job.epoch if job.state in jobs.COMPUTING else None

    async def bump_epoch(self, job_id: str, *, frm: int, reason: str) -> int | None:
        return await self._database.run(
            jobs.bump_epoch, job_id, frm=frm, now=self._clock.now(), reason=reason
        )

    async def unfinished(self, job_id: str) -> list[int]:
        return await self._database.run(chunks.unfinished, job_id)

    async def grant(
        self, job_id: str, *, holder: str, grants: Sequence[tuple[int, Token]]
    ) -> dict[int, ChunkRow]:
        return await self._database.run(chunks.grant, job_id, holder=holder, grants=grants)

    async def take_back(self, job_id: str, *, holder: str) -> list[int]:
        return await self._database.run(chunks.take_back, job_id, holder=holder)

    async def give_back(self, job_id: str, *, chunk: int, token: Token) -> None:
        await self._database.run(chunks.give_back, job_id, chunk, str(token))

    async def complete(
        self, job_id: str, *, chunk: int, token: Token, holder: str, result: ChunkResult
    ) -> bool:
        now = self._clock.now()

        def complete(connection: Connection) -> bool:
            done = chunks.complete(connection, job_id, chunk=chunk, token=token, result=result)
            if done is None:
                return True
            if done:
                replicas.count_completion(connection, holder)
            events.append(
                connection,
                EventKind.CHUNK_COMPLETED if done else EventKind.CHUNK_REFUSED,
                now=now,
                job_id=job_id,
                replica_id=holder,
                chunk=chunk,
                token=str(token),
                completed=result.completed,
                failed=result.failed,
                output_tokens=result.output_tokens,
            )
            return done

        return await self._database.run(complete)

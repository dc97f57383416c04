"""The chunk table. It is the arbiter: a completion counts if the chunk's recorded token is the holder's.

The queue proposes (who holds what now), this table disposes: a grant is recorded here before the new
holder hears of it, so from then on an earlier holder's completion is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tandemn.batch.chunk_table import ChunkRow
from tandemn.control.store.jobs import COMPUTING
from tandemn.control.store.records import ChunkRecord, record
from tandemn.control.store.schema import chunks, jobs, strikes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandemn.batch.chunk_table import ChunkResult
    from tandemn.batch.queue import Token

#: Rows inserted by one statement.
_BATCH = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTotals:
    """Sums over a job's chunks; request and token figures are of completed ones."""

    total: int
    done: int
    leased: int
    completed: int
    failed: int
    recomputed: int
    prompt_tokens: int
    output_tokens: int


def replace_all(connection: Connection, job_id: str, rows: Iterable[dict[str, Any]]) -> None:
    """Give the job these chunks and no others (planning again after a crash must not double them)."""
    connection.execute(chunks.delete().where(chunks.c.job_id == job_id))
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append({"job_id": job_id, **row})
        if len(batch) == _BATCH:
            connection.execute(chunks.insert(), batch)
            batch = []
    if batch:
        connection.execute(chunks.insert(), batch)


def unfinished(connection: Connection, job_id: str) -> list[int]:
    query = select(chunks.c.chunk).where(chunks.c.job_id == job_id, ~chunks.c.done)
    return list(connection.scalars(query.order_by(chunks.c.chunk)))


def page(connection: Connection, job_id: str, *, after: int, limit: int) -> list[ChunkRecord]:
    """Read chunks in order, those numbered above `after`."""
    query = select(chunks).where(chunks.c.job_id == job_id, chunks.c.chunk > after)
    rows = connection.execute(query.order_by(chunks.c.chunk).limit(limit))
    return [record(ChunkRecord, row) for row in rows]


def grant(
    connection: Connection, job_id: str, *, holder: str, grants: Sequence[tuple[int, Token]]
) -> dict[int, ChunkRow]:
    """Record who was given which chunk; the answer lacks chunks that are done, or of another epoch."""
    granted: dict[int, ChunkRow] = {}
    for chunk, token in grants:
        row = connection.execute(
            update(chunks)
            .where(
                chunks.c.job_id == job_id,
                chunks.c.chunk == chunk,
                ~chunks.c.done,
                _job_computes(job_id, token),
            )
            .values(token=str(token), holder=holder, grants=chunks.c.grants + 1)
            .returning(chunks)
        ).first()
        if row is not None:
            granted[chunk] = ChunkRow(
                chunk=row.chunk,
                byte_start=row.byte_start,
                byte_end=row.byte_end,
                first_request=row.first_request,
                requests=row.requests,
                skipped=tuple(row.skipped or ()),
                done=row.done,
                token=row.token,
                holder=row.holder,
                grants=row.grants,
                computed=row.computed,
                recomputed=row.recomputed,
            )
    return granted


def take_back(connection: Connection, job_id: str, *, holder: str) -> list[int]:
    """Strike out the tokens of all that `holder` holds, so that it can complete none; return the chunks."""
    mine = (chunks.c.job_id == job_id, chunks.c.holder == holder, ~chunks.c.done)
    held = list(connection.scalars(select(chunks.c.chunk).where(*mine)))
    if held:
        connection.execute(update(chunks).where(*mine).values(token=None, holder=None))
    return held


def give_back(connection: Connection, job_id: str, chunk: int, token: str) -> None:
    connection.execute(
        update(chunks)
        .where(chunks.c.job_id == job_id, chunks.c.chunk == chunk, chunks.c.token == token, ~chunks.c.done)
        .values(token=None, holder=None)
    )


def get(connection: Connection, job_id: str, chunk: int) -> ChunkRecord | None:
    row = connection.execute(select(chunks).where(chunks.c.job_id == job_id, chunks.c.chunk == chunk)).first()
    return record(ChunkRecord, row) if row is not None else None


def complete(
    connection: Connection, job_id: str, *, chunk: int, token: Token, result: ChunkResult
) -> bool | None:
    """Mark the chunk done by `token`. None: this very token did it before (a lost reply); False: refused."""
    done = connection.execute(
        update(chunks)
        .where(
            chunks.c.job_id == job_id,
            chunks.c.chunk == chunk,
            chunks.c.token == str(token),
            ~chunks.c.done,
            _job_computes(job_id, token),
        )
        .values(
            done=True,
            completed=result.completed,
            failed=result.failed,
            recomputed=result.recomputed,
            prompt_tokens=result.prompt_tokens,
            output_tokens=result.output_tokens,
        )
    ).rowcount
    if done:
        return True
    before = get(connection, job_id, chunk)
    return None if before is not None and before.done and before.token == str(token) else False


def totals(connection: Connection, job_id: str) -> ChunkTotals:
    done = chunks.c.done
    held = func.count(chunks.c.holder).filter(~done)
    row = connection.execute(
        select(
            func.count(),
            func.count().filter(done),
            held,
            func.coalesce(func.sum(chunks.c.completed), 0),
            func.coalesce(func.sum(chunks.c.failed), 0),
            func.coalesce(func.sum(chunks.c.recomputed), 0),
            func.coalesce(func.sum(chunks.c.prompt_tokens), 0),
            func.coalesce(func.sum(chunks.c.output_tokens), 0),
        ).where(chunks.c.job_id == job_id)
    ).one()
    names = ("total", "done", "leased", "completed", "failed", "recomputed", "prompt_tokens", "output_tokens")
    return ChunkTotals(**dict(zip(names, map(int, row), strict=True)))


def report_progress(
    connection: Connection, job_id: str, *, chunk: int, token: str, computed: int, recomputed: int
) -> None:
    """Keep how many answers the chunk's holder has: what the next holder does not find of them was lost."""
    connection.execute(
        update(chunks)
        .where(chunks.c.job_id == job_id, chunks.c.chunk == chunk, chunks.c.token == token, ~chunks.c.done)
        .values(computed=computed, recomputed=recomputed)
    )


def add_strikes(
    connection: Connection, job_id: str, in_flight: dict[int, list[int]], *, death_id: str
) -> dict[int, dict[int, int]]:
    """Count a death of an engine, once, against each request that it was computing; return the counts."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for chunk, requests in in_flight.items():
        for request in requests:
            statement = insert(strikes).values(
                job_id=job_id, chunk=chunk, request=request, count=1, death_id=death_id
            )
            statement = statement.on_conflict_do_update(
                index_elements=["job_id", "chunk", "request"],
                set_={"count": strikes.c.count + 1, "death_id": death_id},
                where=strikes.c.death_id != death_id,
            )
            connection.execute(statement)
    return strikes_of(connection, job_id, list(in_flight))


def has_counted(connection: Connection, job_id: str, death_id: str) -> bool:
    """Whether the last strike of any request comes from this death."""
    query = select(strikes.c.request).where(strikes.c.job_id == job_id, strikes.c.death_id == death_id)
    return connection.execute(query.limit(1)).first() is not None


def strikes_of(connection: Connection, job_id: str, of: list[int]) -> dict[int, dict[int, int]]:
    found: dict[int, dict[int, int]] = {chunk: {} for chunk in of}
    query = select(strikes.c.chunk, strikes.c.request, strikes.c.count)
    for chunk, request, count in connection.execute(
        query.where(strikes.c.job_id == job_id, strikes.c.chunk.in_(of))
    ):
        found[chunk][request] = count
    return found


def _job_computes(job_id: str, token: Token) -> Any:
    return (
        select(jobs.c.job_id)
        .where(
            jobs.c.job_id == job_id,
            jobs.c.epoch == token.epoch,
            jobs.c.state.in_([state.value for state in COMPUTING]),
        )
        .exists()
    )

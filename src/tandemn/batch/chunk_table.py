"""The chunk table's seam: which chunks a job has, which are done, and who may complete one.

The control plane keeps it in its database; `MemoryChunkTable` is the same in memory, for the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.batch.queue import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """One chunk: a byte range of the job's input, and how it stands."""

    chunk: int
    byte_start: int = 0
    byte_end: int = 0
    first_request: int = 0
    requests: int = 0
    skipped: tuple[int, ...] = ()
    """Offsets of lines within the range that are no requests."""
    done: bool = False
    token: str | None = None
    """Of the latest grant; None: never granted, or taken back."""
    holder: str | None = None
    grants: int = 0
    """How often it was granted; more than once: earlier holders may have stored parts."""
    computed: int = 0
    """How many answers its last holder had, as far as is known."""
    recomputed: int = 0
    """How many answers holders before that one had and lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What the holder says of a finished chunk; counts are of requests and tokens."""

    completed: int
    failed: int
    recomputed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class ChunkTable(Protocol):
    """Every method is one transaction. Raises StoreUnavailable where the state cannot be reached."""

    async def epoch(self, job_id: str) -> int | None:
        """The job's epoch, or None where the job does not compute (not planned yet, sealed, ended)."""
        ...

    async def bump_epoch(self, job_id: str, *, frm: int, reason: str) -> int | None:
        """Begin a new epoch; None where another did, or the job was sealed."""
        ...

    async def unfinished(self, job_id: str) -> list[int]:
        """Chunks that are not done, in order."""
        ...

    async def grant(
        self, job_id: str, *, holder: str, grants: Sequence[tuple[int, Token]]
    ) -> dict[int, ChunkRow]:
        """Record the grants; the answer lacks chunks that are done, or of another epoch."""
        ...

    async def take_back(self, job_id: str, *, holder: str) -> list[int]:
        """Make all that `holder` holds uncompletable by it; return those chunks."""
        ...

    async def give_back(self, job_id: str, *, chunk: int, token: Token) -> None:
        """Record that the holder gave the chunk back."""
        ...

    async def complete(
        self, job_id: str, *, chunk: int, token: Token, holder: str, result: ChunkResult
    ) -> bool:
        """Mark it done if `token` is the recorded one and of the job's epoch; True also when it was
        done by this token before (its reply was lost).
        """
        ...


@dataclass(slots=True)
class _Job:
    rows: dict[int, ChunkRow]
    epoch: int = 0
    computes: bool = True
    results: dict[int, ChunkResult] = field(default_factory=dict)


class MemoryChunkTable:
    """The table in memory; also keeps each chunk's result."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def add_job(self, job_id: str, rows: Sequence[ChunkRow]) -> None:
        self._jobs[job_id] = _Job(rows={row.chunk: row for row in rows})

    def seal(self, job_id: str) -> None:
        """Refuse every later completion."""
        job = self._jobs[job_id]
        job.computes = False
        job.epoch += 1

    def rows(self, job_id: str) -> list[ChunkRow]:
        return list(self._jobs[job_id].rows.values())

    def results(self, job_id: str) -> dict[int, ChunkResult]:
        return dict(self._jobs[job_id].results)

    async def epoch(self, job_id: str) -> int | None:
        job = self._jobs[job_id]
        return job.epoch if job.computes else None

    async def bump_epoch(self, job_id: str, *, frm: int, reason: str) -> int | None:  # noqa: ARG002 - the seam's
        job = self._jobs[job_id]
        if not job.computes or job.epoch != frm:
            return None
        job.epoch += 1
        return job.epoch

    async def unfinished(self, job_id: str) -> list[int]:
        return sorted(row.chunk for row in self._jobs[job_id].rows.values() if not row.done)

    async def grant(
        self, job_id: str, *, holder: str, grants: Sequence[tuple[int, Token]]
    ) -> dict[int, ChunkRow]:
        job = self._jobs[job_id]
        granted = {}
        for chunk, token in grants:
            row = job.rows[chunk]
            if row.done or not job.computes or token.epoch != job.epoch:
                continue
            row = replace(row, token=str(token), holder=holder, grants=row.grants + 1)
            job.rows[chunk] = granted[chunk] = row
        return granted

    async def take_back(self, job_id: str, *, holder: str) -> list[int]:
        job = self._jobs[job_id]
        held = [row for row in job.rows.values() if row.holder == holder and not row.done]
        for row in held:
            job.rows[row.chunk] = replace(row, token=None, holder=None)
        return sorted(row.chunk for row in held)

    async def give_back(self, job_id: str, *, chunk: int, token: Token) -> None:
        row = self._jobs[job_id].rows[chunk]
        if row.token == str(token) and not row.done:
            self._jobs[job_id].rows[chunk] = replace(row, token=None, holder=None)

    async def complete(
        self,
        job_id: str,
        *,
        chunk: int,
        token: Token,
        holder: str,  # noqa: ARG002 - the seam's
        result: ChunkResult,
    ) -> bool:
        job = self._jobs[job_id]
        row = job.rows[chunk]
        if row.token != str(token):
            return False
        if row.done:
            return True
        if not job.computes or token.epoch != job.epoch:
            return False
        job.rows[chunk] = replace(row, done=True)
        job.results[chunk] = result
        return True

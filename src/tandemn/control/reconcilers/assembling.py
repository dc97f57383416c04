"""What the assembly is given: every chunk in order, from the table, page by page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.batch.assembly import AssemblyNames, ChunkObjects, UnfinishedChunk, assemble
from tandemn.batch.split import ChunkRange
from tandemn.control import names
from tandemn.control.inputs import input_of
from tandemn.control.store import chunks
from tandemn.errors import Broken
from tandemn.protocol.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.batch.assembly import Assembled
    from tandemn.control.services import Services
    from tandemn.control.store.records import ChunkRecord, JobRecord

#: Chunks read from the database at a time.
PAGE = 1000

#: What the error line of an unanswered request says, by how the job ends.
UNANSWERED = {
    JobState.CANCELLED: ("batch_cancelled", "This request was not executed before the job was cancelled."),
    JobState.EXPIRED: ("batch_expired", "This request could not be executed before the deadline."),
    JobState.OVER_BUDGET: ("over_budget", "This request was not executed within the job's budget."),
    JobState.FAILED: ("job_failed", "This request was not executed, because the job failed"),
}


async def assemble_job(services: Services, job: JobRecord) -> Assembled:
    """Write the job's output and error files; safe to repeat."""
    inputs, input_name = await asyncio.to_thread(input_of, services, job)
    return await assemble(
        services.objects,
        _chunks(services, job),
        names=AssemblyNames(
            input=input_name,
            output=names.output_object(job.job_id),
            errors=names.errors_object(job.job_id),
            settled_prefix=names.settled_prefix(job.job_id),
        ),
        batch_id=job.job_id,
        requests=job.requests,
        inputs=inputs,
    )


async def _chunks(services: Services, job: JobRecord) -> AsyncIterator[ChunkObjects | UnfinishedChunk]:
    after = -1
    while page := await services.database.run(chunks.page, job.job_id, after=after, limit=PAGE):
        for chunk in page:
            yield _done(job, chunk) if chunk.done else await _unfinished(services, job, chunk)
        after = page[-1].chunk


def _done(job: JobRecord, chunk: ChunkRecord) -> ChunkObjects:
    assert chunk.token is not None, "a chunk is done under a token"
    output = names.chunk_object(job.job_id, chunk.chunk, chunk.token)
    errors = names.chunk_errors_object(job.job_id, chunk.chunk, chunk.token)
    return ChunkObjects(
        chunk=chunk.chunk,
        requests=chunk.requests,
        output=output if chunk.completed else None,
        output_lines=chunk.completed,
        errors=errors if chunk.failed else None,
        error_lines=chunk.failed,
    )


async def _unfinished(services: Services, job: JobRecord, chunk: ChunkRecord) -> UnfinishedChunk:
    if job.outcome not in UNANSWERED:
        raise Broken(
            f"chunk {chunk.chunk} of {job.job_id} is not done, yet the job is {job.outcome}",
            code="assembly_incomplete",
            object_id=job.job_id,
        )
    code, message = UNANSWERED[job.outcome]
    if job.outcome is JobState.FAILED:
        message = f"{message}: {job.reason}"
    folder = names.parts_folder(job.job_id, chunk.chunk)
    parts = [name async for name, _ in services.objects.list(folder)] if chunk.grants else []
    return UnfinishedChunk(
        range=ChunkRange(
            index=chunk.chunk,
            byte_start=chunk.byte_start,
            byte_end=chunk.byte_end,
            first_request=chunk.first_request,
            requests=chunk.requests,
            skipped=tuple(chunk.skipped or ()),
        ),
        parts=parts,
        code=code,
        message=message,
    )

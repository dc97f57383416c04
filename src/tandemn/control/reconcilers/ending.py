"""A sealed job: assemble its output, leave nothing behind, end.

Each step is recorded before the next begins, and repeats without harm: the output files are named in the
database before what they were made from is deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control import names
from tandemn.control.reconcilers.assembling import assemble_job
from tandemn.control.store import chunks, files, jobs, replicas
from tandemn.control.store.records import FileRecord
from tandemn.errors import Broken, StoreUnavailable
from tandemn.protocol.jobs import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord


async def step(services: Services, job: JobRecord) -> bool:
    """Assemble, wait for the replicas to be gone, clean, end; True: it moved."""
    if job.output_file_id is None and job.error_file_id is None:
        try:
            await _assemble(services, job)
        except StoreUnavailable as exc:
            if exc.code == job.code == "store_full":
                # The store's being full is what the job ended of: it has been waited for long enough.
                raise Broken(exc.message, code=exc.code, next_step=exc.next_step) from exc
            raise
        job = await services.database.run(jobs.get, job.job_id)
    live = [
        each for each in await services.database.run(replicas.of_job, job.job_id) if not each.state.has_ended
    ]
    assert job.outcome is not None, "a sealed job has an outcome"
    persists = job.spec.persist and job.outcome is JobState.COMPLETED
    if live and not persists:
        return False  # the fleet's step ends them
    for folder in names.scratch_folders(job.job_id):
        await services.objects.delete_prefix(folder)
    # Planning removes it, unless it died just before.
    await services.objects.delete(names.index_object(job.job_id))
    await services.desk.forget(job.job_id)
    moved = await services.database.run(
        jobs.move,
        job.job_id,
        to=job.outcome,
        frm=(JobState.ASSEMBLING,),
        now=services.clock.now(),
        reason=job.reason,
        code=job.code,
    )
    services.pulse.beat(job.job_id)
    return moved


async def _assemble(services: Services, job: JobRecord) -> None:
    if (await services.database.run(chunks.totals, job.job_id)).total == 0:
        return  # cancelled while it was read or planned: there is nothing to tell of each request
    assembled = await assemble_job(services, job)
    now = services.clock.now()
    keep_s = job.spec.output_expires_s

    def record(connection: Connection) -> None:
        for kind, name, size in (
            ("output", names.output_object(job.job_id), assembled.output_bytes),
            ("errors", names.errors_object(job.job_id), assembled.error_bytes),
        ):
            if size == 0:
                continue
            file = FileRecord(
                file_id=f"file-{job.job_id}-{kind}",
                filename=f"{job.job_id}_{kind}.jsonl",
                purpose="batch_output",
                bytes=size,
                object=name,
                created_at=now,
                job_id=job.job_id,
                owner=job.owner,
                expires_at=now + keep_s if keep_s is not None else None,
            )
            files.add(connection, file)
            column = "output_file_id" if kind == "output" else "error_file_id"
            jobs.change(connection, job.job_id, **{column: file.file_id})
        jobs.change(connection, job.job_id, completed=assembled.output_lines, failed=assembled.error_lines)

    await services.database.run(record)

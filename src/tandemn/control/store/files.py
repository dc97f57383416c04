"""Files: uploaded inputs, and the outputs of jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, and_, or_, select

from tandemn.control.store import events
from tandemn.control.store.records import FileRecord, record
from tandemn.control.store.schema import files, jobs
from tandemn.errors import Conflict, NotFound
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobState


def add(connection: Connection, file: FileRecord, *, actor: str | None = None) -> None:
    connection.execute(
        files.insert().values(
            file_id=file.file_id,
            filename=file.filename,
            purpose=file.purpose,
            bytes=file.bytes,
            object=file.object,
            created_at=file.created_at,
            job_id=file.job_id,
            owner=file.owner,
        )
    )
    events.append(
        connection,
        EventKind.FILE_ADDED,
        now=file.created_at,
        job_id=file.job_id,
        actor=actor,
        file_id=file.file_id,
        bytes=file.bytes,
    )


def get(connection: Connection, file_id: str, *, owner: str | None = None) -> FileRecord:
    """Read a file; with `owner`, another's file is not there.

    Raises:
        NotFound: code `file_not_found`.
    """
    row = connection.execute(_of(select(files).where(files.c.file_id == file_id), owner)).first()
    if row is None:
        raise NotFound(
            f"No such File object: {file_id}", code="file_not_found", param="id", object_id=file_id
        )
    return record(FileRecord, row)


def page(
    connection: Connection,
    *,
    limit: int,
    after: str | None,
    purpose: str | None,
    newest_first: bool,
    owner: str | None = None,
) -> list[FileRecord]:
    """Up to `limit` + 1 files: one more than asked tells that there is a next page."""
    query = _of(select(files), owner)
    if purpose:
        query = query.where(files.c.purpose == purpose)
    if after:
        last = get(connection, after, owner=owner)
        key = (files.c.created_at, files.c.file_id)
        if newest_first:
            later = or_(key[0] < last.created_at, and_(key[0] == last.created_at, key[1] < last.file_id))
        else:
            later = or_(key[0] > last.created_at, and_(key[0] == last.created_at, key[1] > last.file_id))
        query = query.where(later)
    if newest_first:
        query = query.order_by(files.c.created_at.desc(), files.c.file_id.desc())
    else:
        query = query.order_by(files.c.created_at, files.c.file_id)
    return [record(FileRecord, row) for row in connection.execute(query.limit(limit + 1))]


def delete(connection: Connection, file_id: str, *, now: float, actor: str | None) -> FileRecord:
    """Forget the file and return what it was.

    Raises:
        Conflict: an unfinished job still reads it.
    """
    file = get(connection, file_id)
    ended = [state.value for state in JobState if state.has_ended]
    reader = connection.execute(
        select(jobs.c.job_id).where(jobs.c.input_object == file.object, jobs.c.state.not_in(ended))
    ).first()
    if reader is not None:
        raise Conflict(
            f"file {file_id} is the input of job {reader.job_id}, which has not ended",
            code="file_in_use",
            next_step=f"cancel the job first: tandemn cancel {reader.job_id}",
            object_id=file_id,
        )
    connection.execute(files.delete().where(files.c.file_id == file_id))
    events.append(
        connection, EventKind.FILE_DELETED, now=now, job_id=file.job_id, actor=actor, file_id=file_id
    )
    return file


def _of(query: Select[Any], owner: str | None) -> Select[Any]:
    return query if owner is None else query.where(files.c.owner == owner)

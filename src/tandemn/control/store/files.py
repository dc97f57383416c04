"""Files: uploaded inputs, and the outputs of jobs.

A row stands before its object does and until its object is gone, hidden: whatever dies in between, the sweep
(`reconcilers/retention.py`) finds what is left.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select, update

from tandemn.control.store import events
from tandemn.control.store.records import FileRecord, record
from tandemn.control.store.schema import files, jobs
from tandemn.errors import Conflict, NotFound
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobState

_ENDED = [state.value for state in JobState if state.has_ended]


def reserve(connection: Connection, file: FileRecord) -> None:
    """Record that an object is about to be written; nobody sees the file before it is added."""
    connection.execute(files.insert().values(**asdict(file), hidden_at=file.created_at))


def add(connection: Connection, file: FileRecord, *, actor: str | None = None) -> None:
    """Record a file whose object is whole."""
    connection.execute(files.delete().where(files.c.file_id == file.file_id, files.c.hidden_at.is_not(None)))
    connection.execute(files.insert().values(**asdict(file)))
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
    row = connection.execute(_seen(owner).where(files.c.file_id == file_id)).first()
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
    query = _seen(owner)
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


def hide(connection: Connection, file_id: str, *, now: float, actor: str | None, reason: str) -> FileRecord:
    """Take the file from everyone's sight, and return what it was: its object can go now.

    Raises:
        Conflict: an unfinished job still reads it.
    """
    file = get(connection, file_id)
    reader = connection.execute(
        select(jobs.c.job_id).where(jobs.c.input_object == file.object, jobs.c.state.not_in(_ENDED))
    ).first()
    if reader is not None:
        raise Conflict(
            f"file {file_id} is the input of job {reader.job_id}, which has not ended",
            code="file_in_use",
            next_step=f"cancel the job first: tandemn cancel {reader.job_id}",
            object_id=file_id,
        )
    connection.execute(update(files).where(files.c.file_id == file_id).values(hidden_at=now))
    events.append(
        connection,
        EventKind.FILE_DELETED,
        now=now,
        job_id=file.job_id,
        actor=actor,
        file_id=file_id,
        reason=reason,
    )
    return file


def forget(connection: Connection, file_id: str) -> None:
    """Forget a hidden file, whose object is gone."""
    connection.execute(files.delete().where(files.c.file_id == file_id, files.c.hidden_at.is_not(None)))


def expired(connection: Connection, *, now: float, kept_since: float | None, limit: int) -> list[FileRecord]:
    """Read files whose time is over: their own, or the server's (made before `kept_since`). None is in use."""
    over: ColumnElement[bool] = files.c.expires_at <= now
    if kept_since is not None:
        over = or_(over, files.c.created_at <= kept_since)
    is_read = (
        select(jobs.c.job_id)
        .where(jobs.c.input_object == files.c.object, jobs.c.state.not_in(_ENDED))
        .exists()
    )
    query = _seen(None).where(over, ~is_read).order_by(files.c.created_at).limit(limit)
    return [record(FileRecord, row) for row in connection.execute(query)]


def left_over(connection: Connection, *, before: float, limit: int) -> list[FileRecord]:
    """Read hidden files that whoever hid them did not get to the end with."""
    query = select(files).where(files.c.hidden_at <= before).order_by(files.c.hidden_at).limit(limit)
    return [record(FileRecord, row) for row in connection.execute(query)]


def _seen(owner: str | None) -> Select[Any]:
    query = select(files).where(files.c.hidden_at.is_(None))
    return query if owner is None else query.where(files.c.owner == owner)

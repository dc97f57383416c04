"""The event log: appended in the same transaction as the change that it tells of, and with it what Koi is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, and_, select, true

from tandemn.control.store import outbox
from tandemn.control.store.records import EventRecord, record
from tandemn.control.store.schema import events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.events import EventKind


def append(
    connection: Connection,
    kind: EventKind,
    *,
    now: float,
    job_id: str | None = None,
    service_name: str | None = None,
    replica_id: str | None = None,
    actor: str | None = None,
    **data: Any,
) -> None:
    """Record that something happened; `data` is what docs/events.md says for the kind."""
    connection.execute(
        events.insert().values(
            at=now,
            kind=kind.value,
            job_id=job_id,
            service_name=service_name,
            replica_id=replica_id,
            actor=actor,
            data=data,
        )
    )
    outbox.tell(connection, kind, now=now, job_id=job_id, replica_id=replica_id, data=data)


def of_job(connection: Connection, job_id: str, *, after: int, limit: int) -> list[EventRecord]:
    """Read a page of the job's events, oldest first, those numbered above `after`."""
    return _page(connection, events.c.job_id == job_id, after, limit)


def of_deployment(
    connection: Connection, service_name: str, *, after: int, limit: int, since: float = 0.0
) -> list[EventRecord]:
    """Read a page of a deployment's events, oldest first, with those of deleted ones of that name after `since`."""
    whose = and_(events.c.service_name == service_name, events.c.at >= since)
    return _page(connection, whose, after, limit)


def page(connection: Connection, *, after: int, limit: int, actor: str | None = None) -> list[EventRecord]:
    """Read a page of the whole server's events, oldest first, or of those that `actor` brought about."""
    return _page(connection, true() if actor is None else events.c.actor == actor, after, limit)


def _page(connection: Connection, which: ColumnElement[bool], after: int, limit: int) -> list[EventRecord]:
    query = select(events).where(which, events.c.seq > after).order_by(events.c.seq).limit(limit)
    return [record(EventRecord, row) for row in connection.execute(query)]


def of_kinds(
    connection: Connection,
    kinds: Sequence[EventKind],
    *,
    job_id: str | None = None,
    service_name: str | None = None,
) -> list[EventRecord]:
    """Read every event of these kinds, oldest first, of one job or deployment, or of all."""
    query = select(events).where(events.c.kind.in_([kind.value for kind in kinds])).order_by(events.c.seq)
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    if service_name is not None:
        query = query.where(events.c.service_name == service_name)
    return [record(EventRecord, row) for row in connection.execute(query)]

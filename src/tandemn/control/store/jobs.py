"""Jobs: their record, and the guarded moves from state to state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, and_, func, or_, select, update

from tandemn.control.access.rules import LOCAL
from tandemn.control.store import events
from tandemn.control.store.records import JobRecord, job_record
from tandemn.control.store.schema import jobs
from tandemn.errors import InvalidInput, NotFound
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobSpec, JobState

ENDED = tuple(state.value for state in JobState if state.has_ended)
#: States in which replicas may lease and complete chunks.
COMPUTING = (JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING, JobState.CANCELLING)
#: States in which a job is to have the replicas that it wants.
NEEDS_REPLICAS = frozenset({JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING})


def add(
    connection: Connection,
    *,
    job_id: str,
    spec: JobSpec,
    now: float,
    input_object: str | None,
    cloud: str,
    owner: str = LOCAL,
) -> None:
    """Record a new job, in state validating."""
    connection.execute(
        jobs.insert().values(
            job_id=job_id,
            state=JobState.VALIDATING.value,
            reason="checking every line of the input",
            spec=spec.model_dump(mode="json"),
            endpoint=spec.endpoint,
            model=spec.model,
            cloud=cloud,
            input_object=input_object,
            input_url=spec.input_url,
            created_at=now,
            deadline=now + spec.slo_s,
            owner=owner,
        )
    )
    events.append(connection, EventKind.JOB_SUBMITTED, now=now, job_id=job_id, actor=owner, model=spec.model)


def get(connection: Connection, job_id: str, *, owner: str | None = None) -> JobRecord:
    """Read a job; with `owner`, another's job is not there.

    Raises:
        NotFound: code `job_not_found`.
    """
    row = connection.execute(_of(select(jobs).where(jobs.c.job_id == job_id), owner)).first()
    if row is None:
        raise NotFound(
            f"no such job: {job_id}",
            code="job_not_found",
            next_step="`tandemn list` shows the jobs",
            param="job_id",
            object_id=job_id,
        )
    return job_record(row)


def get_batch(connection: Connection, batch_id: str, *, owner: str | None = None) -> JobRecord:
    """Read a job by its full id; that there is none is said as OpenAI says it."""
    try:
        return get(connection, batch_id, owner=owner)
    except NotFound as exc:
        raise NotFound(
            f"No batch found with id '{batch_id}'.",
            code="batch_not_found",
            param="batch_id",
            object_id=batch_id,
        ) from exc


def resolve(connection: Connection, name: str, *, owner: str | None = None) -> JobRecord:
    """Find a job by its id or an unambiguous beginning of it; with `owner`, among that one's jobs only.

    Raises:
        NotFound: there is none.
        InvalidInput: several begin like that (code `ambiguous_job`).
    """
    pattern = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    query = select(jobs).where(jobs.c.job_id.like(pattern, escape="\\"))
    rows = connection.execute(_of(query, owner).order_by(jobs.c.job_id).limit(3)).all()
    exact = [row for row in rows if row.job_id == name]
    if len(rows) > 1 and not exact:
        raise InvalidInput(
            f"several jobs begin with {name}: {', '.join(row.job_id for row in rows)}",
            code="ambiguous_job",
            next_step="give more of the id",
            param="job_id",
        )
    if not rows or not name:
        return get(connection, name, owner=owner)
    return job_record((exact or rows)[0])


def page(
    connection: Connection,
    *,
    limit: int,
    after: str | None,
    states: tuple[str, ...] | None,
    with_live_replicas: list[str] | None = None,
    owner: str | None = None,
) -> list[JobRecord]:
    """Up to `limit` + 1 jobs, newest first: one more than asked tells that there is a next page.

    With `with_live_replicas`, those jobs and all that have not ended; with `owner`, that one's only.
    """
    query = _of(select(jobs), owner)
    if with_live_replicas is not None:
        query = query.where(or_(jobs.c.job_id.in_(with_live_replicas), jobs.c.state.not_in(ENDED)))
    if states is not None:
        query = query.where(jobs.c.state.in_(states))
    if after:
        last = get(connection, after, owner=owner)
        query = query.where(
            or_(
                jobs.c.created_at < last.created_at,
                and_(jobs.c.created_at == last.created_at, jobs.c.job_id < last.job_id),
            )
        )
    query = query.order_by(jobs.c.created_at.desc(), jobs.c.job_id.desc()).limit(limit + 1)
    return [job_record(row) for row in connection.execute(query)]


def count(connection: Connection, *, owner: str | None = None) -> int:
    """Return how many jobs there are, or how many are this owner's."""
    counted: int = connection.execute(_of(select(func.count()).select_from(jobs), owner)).scalar_one()
    return counted


def ids_of(connection: Connection, owner: str) -> set[str]:
    """Name every job of this owner."""
    return set(connection.scalars(select(jobs.c.job_id).where(jobs.c.owner == owner)))


def unpurged(connection: Connection, *, ended_before: float, limit: int) -> list[str]:
    """Name jobs that ended before then, and whose objects were not removed yet."""
    query = select(jobs.c.job_id).where(
        jobs.c.state.in_(ENDED), jobs.c.ended_at <= ended_before, jobs.c.purged_at.is_(None)
    )
    return list(connection.scalars(query.order_by(jobs.c.ended_at).limit(limit)))


def active(connection: Connection) -> list[JobRecord]:
    """Every job that has not ended, oldest first."""
    query = select(jobs).where(jobs.c.state.not_in(ENDED)).order_by(jobs.c.created_at)
    return [job_record(row) for row in connection.execute(query)]


def change(connection: Connection, job_id: str, /, **values: Any) -> None:
    """Set columns that no state depends on."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))


def move(
    connection: Connection,
    job_id: str,
    /,
    *,
    to: JobState,
    frm: tuple[JobState, ...],
    now: float,
    reason: str | None = None,
    code: str | None = None,
    actor: str | None = None,
    **values: Any,
) -> bool:
    """Compare and set the state; False where the job is in none of `frm` any more: drop the move.

    `actor` is who asked for it, where somebody did.
    """
    values |= {"state": to.value, "reason": reason, "code": code}
    if to.has_ended:
        values["ended_at"] = now
    moved = connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id, jobs.c.state.in_([state.value for state in frm]))
        .values(**values)
    ).rowcount
    if moved:
        kind = EventKind.JOB_ENDED if to.has_ended else EventKind.JOB_STATE
        events.append(
            connection,
            kind,
            now=now,
            job_id=job_id,
            actor=actor,
            state=to.value,
            reason=reason,
            code=code,
        )
    return bool(moved)


def seal(connection: Connection, job_id: str, *, outcome: JobState, now: float, reason: str) -> bool:
    """Close the job to completions: to `assembling`, the epoch bumped. One seal wins; False: not this one."""
    frm = [state.value for state in COMPUTING] + [JobState.PLANNING.value]
    sealed = connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id, jobs.c.state.in_(frm))
        .values(
            state=JobState.ASSEMBLING.value,
            outcome=outcome.value,
            epoch=jobs.c.epoch + 1,
            assembling_at=now,
            reason=reason,
        )
    ).rowcount
    if sealed:
        events.append(
            connection, EventKind.JOB_SEALED, now=now, job_id=job_id, outcome=outcome.value, reason=reason
        )
    return bool(sealed)


def bump_epoch(connection: Connection, job_id: str, *, frm: int, now: float, reason: str) -> int | None:
    """Begin a new epoch, so that no token given so far is valid; None where another did, or it is sealed."""
    bumped = connection.execute(
        update(jobs)
        .where(
            jobs.c.job_id == job_id,
            jobs.c.epoch == frm,
            jobs.c.state.in_([state.value for state in COMPUTING]),
        )
        .values(epoch=frm + 1)
    ).rowcount
    if not bumped:
        return None
    events.append(connection, EventKind.QUEUE_REBUILT, now=now, job_id=job_id, epoch=frm + 1, reason=reason)
    return frm + 1


def _of(query: Select[Any], owner: str | None) -> Select[Any]:
    return query if owner is None else query.where(jobs.c.owner == owner)

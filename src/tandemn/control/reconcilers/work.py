"""Who has which replicas and who wants more: what places and quotas are shared by."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.control.pace import stays
from tandemn.control.store import jobs, replicas
from tandemn.protocol.replicas import ReplicaState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.records import JobRecord, ReplicaRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job, and its replicas that have not ended."""

    job: JobRecord
    fleet: tuple[ReplicaRecord, ...]
    last_failure: ReplicaRecord | None = None
    """The replica that ended last; read only of jobs that lack one, in a cloud or until the next try."""
    most_starts: int | None = None
    """Pending replicas that it may launch for all that others leave of a quota; None: no quota is known to be used up."""

    @property
    def held(self) -> list[ReplicaRecord]:
        """Replicas that have a place, and stay."""
        return [each for each in self.fleet if each.launched_at is not None and goes_on(each)]

    @property
    def pending(self) -> list[ReplicaRecord]:
        return [each for each in self.fleet if each.state is ReplicaState.PENDING and stays(each)]

    def due(self, now: float) -> int:
        """How many replicas it could launch now."""
        due = sum(each.not_before <= now for each in self.pending)
        return due if self.most_starts is None else min(due, self.most_starts)


def load(connection: Connection, now: float) -> list[Work]:
    """Read every job that has not ended, and ended ones of which replicas live, oldest first."""
    fleets: defaultdict[str, list[ReplicaRecord]] = defaultdict(list)
    for replica in replicas.live(connection):
        fleets[replica.job_id].append(replica)
    found = jobs.active(connection)
    known = {job.job_id for job in found}
    found += [jobs.get(connection, job_id) for job_id in fleets if job_id not in known]
    work = []
    for job in found:
        each = Work(job=job, fleet=tuple(fleets.get(job.job_id, ())))
        if each.pending and (job.cloud not in {None, "local"} or not each.due(now)):
            failed = replicas.last_ended(connection, job.job_id)
            each = Work(job=job, fleet=each.fleet, last_failure=failed)
        work.append(each)
    return work


def goes_on(replica: ReplicaRecord) -> bool:
    """Whether it lives, nobody has told it to go, and it has not taken leave."""
    return stays(replica) and replica.goodbye is None


def worth(replica: ReplicaRecord) -> tuple[bool, int, float]:
    """Order replicas by what is lost with them: one that has not begun, then the one that has done least."""
    return replica.began_at is not None, replica.chunks_completed, -replica.created_at

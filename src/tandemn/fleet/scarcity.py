"""Sharing a cloud's quota that is used up: pure.

How much a quota leaves is known only when a launch fails for it. From then on, until the job that failed has what it wants,
replicas of that kind are shared as places are (`sharing`): there are as many as run, and as have ended since. The job that
failed tries again as soon as one has ended, and whoever has more than a fair share drains one for it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandemn.fleet.sharing import Claim, Pool, share
from tandemn.protocol.jobs import Priority

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One that lives, or ended lately."""

    replica_id: str
    kind: Hashable
    """What of the cloud it takes: those of one kind take it from each other."""
    launched_at: float | None = None
    stays: bool = True
    """It lives, and nobody has told it to go."""
    ended_at: float | None = None
    lacked_quota: bool = False
    """It ended because a quota was used up."""
    not_before: float = 0.0
    """Where it was not launched yet: when it may be."""

    @property
    def is_pending(self) -> bool:
        return self.launched_at is None and self.ended_at is None and self.stays

    @property
    def runs(self) -> bool:
        return self.launched_at is not None and self.ended_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Who shares; its replicas in the order in which it would give them up."""

    job_id: str
    owner: str
    priority: Priority = Priority.NORMAL
    since: float
    replicas: tuple[Replica, ...]


@dataclass(slots=True, kw_only=True)
class Settlement:
    """What follows for all jobs."""

    starts: dict[str, int] = field(default_factory=dict)
    """Pending replicas that a job may launch at most; a job that is not named: all of them."""
    drains: dict[str, str] = field(default_factory=dict)
    """Replicas that are to go, and why."""
    tries: list[str] = field(default_factory=list)
    """Pending replicas that need not wait any longer for their next try."""
    drained: set[Hashable] = field(default_factory=set)
    """Kinds of which some are to go."""


def settle(jobs: Sequence[Job], now: float, *, spared: Collection[Hashable] = ()) -> Settlement:
    """Decide on every kind that a job lacks for quota; `spared` kinds are not drained again so soon."""
    settlement = Settlement()
    held_back: defaultdict[str, int] = defaultdict(int)
    for kind, failed_at in _lacking(jobs).items():
        for job_id, blocked in _settle_kind(settlement, jobs, kind, failed_at, now, spared=spared):
            held_back[job_id] += blocked
    for job in jobs:
        if blocked := held_back[job.job_id]:
            due = sum(each.is_pending and each.not_before <= now for each in job.replicas)
            settlement.starts[job.job_id] = max(due - blocked, 0)
    return settlement


def _lacking(jobs: Sequence[Job]) -> dict[Hashable, float]:
    """Find kinds that a job waits for because of a quota, and when that was last seen to be used up."""
    lacking: dict[Hashable, float] = {}
    for job in jobs:
        for kind in dict.fromkeys(each.kind for each in job.replicas if each.is_pending):
            if (at := _lacks_since(job, kind)) is not None:
                lacking[kind] = max(lacking.get(kind, at), at)
    return lacking


def _lacks_since(job: Job, kind: Hashable) -> float | None:
    """When the job's last replica of a kind failed for quota; None: it did not."""
    ended = [each for each in job.replicas if each.kind == kind and each.ended_at is not None]
    last = max(ended, key=lambda each: each.ended_at or 0.0, default=None)
    return last.ended_at if last is not None and last.lacked_quota else None


def _settle_kind(
    settlement: Settlement,
    jobs: Sequence[Job],
    kind: Hashable,
    failed_at: float,
    now: float,
    *,
    spared: Collection[Hashable],
) -> Iterator[tuple[str, int]]:
    """Share one kind; yield how many due replicas each job must not launch."""
    of_kind = {job.job_id: [each for each in job.replicas if each.kind == kind] for job in jobs}
    claims = [
        _claim(job, of_kind[job.job_id], now, is_lacking=_lacks_since(job, kind) is not None) for job in jobs
    ]
    everyone = [each for members in of_kind.values() for each in members]
    freed = max(_freed(everyone, failed_at), 0)
    limit = sum(each.runs for each in everyone) + freed
    shares = share(claims, Pool(limit=limit, free=freed), now)
    for job, claim in zip(jobs, claims, strict=True):
        its, members = shares[job.job_id], of_kind[job.job_id]
        pending = [each for each in members if each.is_pending]
        due = sum(each.not_before <= now for each in pending)
        yield job.job_id, max(due - its.may_start, 0)
        if its.gives_up and kind not in spared:
            going = [each for each in members if each.runs and each.stays][: its.gives_up]
            settlement.drains |= {each.replica_id: f"a quota is used up: {its.reason}" for each in going}
            settlement.drained.add(kind)
        if claim.held < claim.wanted:
            later = [each.replica_id for each in pending if each.not_before > now]
            settlement.tries += later[: max(its.may_start - due, 0)]


def _claim(job: Job, members: Sequence[Replica], now: float, *, is_lacking: bool) -> Claim:
    held = sum(each.runs and each.stays for each in members)
    # One that waits for its next try wants a place as much as one that has not failed yet.
    pending = sum(each.is_pending and (is_lacking or each.not_before <= now) for each in members)
    return Claim(
        job_id=job.job_id,
        owner=job.owner,
        priority=job.priority,
        held=held,
        wanted=held + pending,
        since=job.since,
    )


def _freed(everyone: Sequence[Replica], failed_at: float) -> int:
    """How many of what ran when the quota was used up have ended since, and were not taken again."""
    ended = sum(
        each.ended_at is not None
        and each.ended_at > failed_at
        and each.launched_at is not None
        and not each.lacked_quota
        for each in everyone
    )
    taken = sum(
        each.launched_at is not None and each.launched_at > failed_at and not each.lacked_quota
        for each in everyone
    )
    return ended - taken

"""Shares the launchers' places between jobs: load who has what, let the pure decision speak, apply.

One decision for all jobs, so that no two take the same place. A job that is to give a place up has a replica drained: it
finishes the chunks that it holds, and nothing is computed twice.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tandemn.control.pace import stays
from tandemn.control.reconcilers.orders import record_order
from tandemn.control.store import events, jobs, replicas
from tandemn.errors import QuotaExceeded
from tandemn.events import EventKind
from tandemn.fleet import scarcity, sharing
from tandemn.fleet.reasons import NO_CAPACITY_CODES
from tandemn.fleet.reconcile import CAPACITY_BACKOFF_S
from tandemn.fleet.sharing import Claim, Pool
from tandemn.protocol.jobs import ReplicaConfig, WaitView
from tandemn.protocol.replicas import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord, ReplicaRecord
    from tandemn.fleet.launchers.launcher import Launcher
    from tandemn.fleet.scarcity import Settlement
    from tandemn.fleet.sharing import Share

#: Owners of whom it is kept when they last got a place.
SERVED_KEPT = 10_000
#: Of the jobs of the same owner that come first, so many are named.
AHEAD_NAMED = 10


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
        return [each for each in self.fleet if each.launched_at is not None and _goes_on(each)]

    @property
    def pending(self) -> list[ReplicaRecord]:
        return [each for each in self.fleet if each.state is ReplicaState.PENDING and stays(each)]

    def due(self, now: float) -> int:
        """How many replicas it could launch now."""
        due = sum(each.not_before <= now for each in self.pending)
        return due if self.most_starts is None else min(due, self.most_starts)


class Places:
    """Knows, from the last look, which job may take a place."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._starts: dict[str, int] = {}
        self._starting: dict[str, str] = {}
        """Replicas whose launch is recorded but under way, and their pool: no launcher sees them yet."""
        self._claims: dict[str, list[Claim]] = {}
        self._pools: dict[str, Pool] = {}
        self._served: dict[str, float] = {}
        self._holders: dict[str | None, set[str]] = {}
        self._drained_at: dict[Hashable, float] = {}
        """When replicas of a kind were last drained for a quota."""

    async def look(self) -> list[str]:
        """Decide anew; return the jobs that have not ended, and ended ones that replicas still live of."""
        async with self._lock:
            now = self._services.clock.now()
            work = await self._settle(await self._services.database.run(load, now), now)
            self._holders = _holders(work)
            by_pool: defaultdict[str, list[Work]] = defaultdict(list)
            for each in work:
                if launcher := self._launcher(each.job):
                    by_pool[launcher.pool].append(each)
            self._starts, self._claims, self._pools = {}, {}, {}
            changes: list[_Change] = []
            for members in by_pool.values():
                changes += await self._share(members, now)
            if changes:
                await self._services.database.run(_write, changes, now)
        for change in changes:
            if change.drains:
                self._services.pulse.beat(change.job_id)
        return [each.job.job_id for each in work]

    def may_start(self, job_id: str) -> int:
        """How many more replicas the job may have launched."""
        return self._starts.get(job_id, 0)

    async def take(self, job: JobRecord, replica_id: str, record: Callable[[], Awaitable[bool]]) -> bool:
        """Take a place for the replica if there is one for its job, and `record` that it is to be launched."""
        async with self._lock:
            launcher = self._launcher(job)
            if launcher is None or self._starts.get(job.job_id, 0) <= 0 or not await record():
                return False
            self._starts[job.job_id] -= 1
            self._starting[replica_id] = launcher.pool
            self._served.pop(job.owner, None)  # the latest stands last
            self._served[job.owner] = self._services.clock.now()
            if len(self._served) > SERVED_KEPT:
                del self._served[next(iter(self._served))]
            return True

    def is_launched(self, replica_id: str) -> None:
        """Hear that the launch is over, well or not: from here on its launcher knows of it."""
        self._starting.pop(replica_id, None)

    async def room_for(self, job_id: str) -> int:
        """How many replicas beside those that it has the job would have if it wanted as many as it can get."""
        if not self._knows(job_id):
            await self.look()
        for name, claims in self._claims.items():
            for claim in claims:
                if claim.job_id == job_id:
                    now = self._services.clock.now()
                    return max(sharing.most(claims, job_id, self._pools[name], now) - claim.held, 0)
        return 0

    def _knows(self, job_id: str) -> bool:
        return any(claim.job_id == job_id for claims in self._claims.values() for claim in claims)

    def _launcher(self, job: JobRecord) -> Launcher | None:
        return self._services.launchers.get(job.cloud or "local")

    def others_hold(self, job: JobRecord) -> bool:
        """Whether other jobs run on the job's cloud: what they have of a quota will be free again."""
        return bool(self._holders.get(job.cloud, set()) - {job.job_id})

    async def _settle(self, work: list[Work], now: float) -> list[Work]:
        """Share quotas that are used up, where a launch has failed for one."""
        failed_at = [
            each.last_failure.ended_at or now
            for each in work
            if each.last_failure is not None and each.last_failure.code == QuotaExceeded.default_code
        ]
        if not failed_at:
            return work
        ended = await self._services.database.run(replicas.ended_since, min(failed_at))
        self._drained_at = {
            kind: at for kind, at in self._drained_at.items() if now - at < CAPACITY_BACKOFF_S
        }
        taking_part = [_sharer(each, ended) for each in work if each.job.state in jobs.NEEDS_REPLICAS]
        settled = scarcity.settle(taking_part, now, spared=set(self._drained_at))
        if settled.drains or settled.tries:
            await self._services.database.run(_write_settled, settled, now)
            self._drained_at |= dict.fromkeys(settled.drained, now)
            self._services.pulse.beat("*")
        return [replace(each, most_starts=settled.starts.get(each.job.job_id)) for each in work]

    async def _share(self, members: Sequence[Work], now: float) -> list[_Change]:
        """Share the places of one pool; return what is to be written of it."""
        launcher = self._launcher(members[0].job)
        assert launcher is not None, "its pool was asked for"
        claims = [claim for each in members if (claim := _claim(each, now)) is not None]
        pool = await self._pool(launcher, members, claims)
        self._claims[launcher.pool], self._pools[launcher.pool] = claims, pool
        shares = sharing.share(claims, pool, now)
        self._starts |= {job_id: each.may_start for job_id, each in shares.items()}
        return list(_changes(members, shares, launcher, now))

    async def _pool(self, launcher: Launcher, members: Sequence[Work], claims: Sequence[Claim]) -> Pool:
        taken = sum(each.launched_at is not None for work in members for each in work.fleet)
        free = launcher.limit - taken
        if free > 0 and any(claim.held < claim.wanted for claim in claims):
            # What nobody has a record of may be there all the same; looking costs a scan of all processes.
            starting = sum(pool == launcher.pool for pool in self._starting.values())
            free = min(free, await asyncio.to_thread(launcher.room) - starting)
        return Pool(limit=launcher.limit, free=max(free, 0), served=dict(self._served))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    job_id: str
    waits: dict[str, Any] | None
    is_new: bool
    """Whether it begins to wait for something, or for something else."""
    drains: tuple[str, ...]
    reason: str


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


def _holders(work: Sequence[Work]) -> dict[str | None, set[str]]:
    found: defaultdict[str | None, set[str]] = defaultdict(set)
    for each in work:
        if each.held:
            found[each.job.cloud].add(each.job.job_id)
    return found


def _sharer(work: Work, ended: Sequence[ReplicaRecord]) -> scarcity.Job:
    job = work.job
    return scarcity.Job(
        job_id=job.job_id,
        owner=job.owner,
        priority=job.spec.priority,
        since=job.created_at,
        replicas=tuple(
            scarcity.Replica(
                replica_id=each.replica_id,
                kind=_kind(each),
                launched_at=each.launched_at,
                stays=_goes_on(each),
                ended_at=each.ended_at,
                lacked_quota=each.code == QuotaExceeded.default_code,
                not_before=each.not_before,
            )
            for each in (
                *sorted(work.fleet, key=_worth),
                *(each for each in ended if each.job_id == job.job_id),
            )
        ),
    )


def _kind(replica: ReplicaRecord) -> Hashable:
    """What of its cloud a replica takes; quotas are by family of machines, market and region."""
    config = ReplicaConfig.model_validate(replica.config)
    return replica.launcher, config.gpu, config.market, config.region, config.regions


def _claim(work: Work, now: float) -> Claim | None:
    job, held = work.job, len(work.held)
    needs = job.state in jobs.NEEDS_REPLICAS
    if not needs and not (held and job.spec.persist):
        return None  # what it has is about to go
    return Claim(
        job_id=job.job_id,
        owner=job.owner,
        priority=job.spec.priority,
        held=held,
        wanted=held + (work.due(now) if needs else 0),
        since=job.created_at,
        # A replacement that is held back follows a failure.
        is_retrying=all(each.not_before > each.created_at for each in work.pending),
        is_fixed=not needs,
    )


def _goes_on(replica: ReplicaRecord) -> bool:
    return stays(replica) and replica.goodbye is None


def _changes(
    members: Sequence[Work], shares: Mapping[str, Share], launcher: Launcher, now: float
) -> Iterator[_Change]:
    """What is to be written of a decision, where it is not there already."""
    owners = {each.job.job_id: each.job.owner for each in members}
    for work in members:
        job = work.job
        if (share := shares.get(job.job_id)) is None:
            continue
        waits = _waits(work, share, launcher, owners, now)
        told = waits.model_dump(mode="json") if waits is not None else None
        drains = tuple(each.replica_id for each in sorted(work.held, key=_worth)[: share.gives_up])
        if told != job.waits or drains:
            yield _Change(
                job_id=job.job_id,
                waits=told,
                is_new=told is not None and told["what"] != (job.waits or {}).get("what"),
                drains=drains,
                reason=share.reason,
            )


def _worth(replica: ReplicaRecord) -> tuple[bool, int, float]:
    """Order replicas by what is lost with them: one that has not begun, then the one that has done least."""
    return replica.began_at is not None, replica.chunks_completed, -replica.created_at


def _waits(
    work: Work, share: Share, launcher: Launcher, owners: Mapping[str, str], now: float
) -> WaitView | None:
    job = work.job
    lacking = len(work.pending) - share.may_start
    if lacking <= 0 or job.state not in jobs.NEEDS_REPLICAS:
        return None
    if not work.due(now):
        what, reason = _next_try(work)
        return WaitView.model_validate({"what": what, "reason": reason, "replicas_wanted": lacking})
    ahead = share.ahead or ()
    own = [each for each in ahead if owners[each] == job.owner]
    return WaitView.model_validate(
        {
            "what": launcher.pool,
            "reason": f"waits for {lacking} of {launcher.limit} {launcher.pool}",
            "replicas_wanted": lacking,
            "place_in_line": len(ahead) + 1,
            "ahead": own[:AHEAD_NAMED],
            "ahead_of_others": len(ahead) - len(own),
        }
    )


def _next_try(work: Work) -> tuple[str, str]:
    failed = work.last_failure
    if work.most_starts is not None and (failed is None or failed.code != QuotaExceeded.default_code):
        return "quota", "waits for its share of a quota that is used up"
    code, why = (failed.code, failed.reason) if failed is not None else (None, None)
    if code == QuotaExceeded.default_code:
        what, thing = "quota", "a quota that is used up"
    elif code in NO_CAPACITY_CODES:
        what, thing = "capacity", "a cloud that has nothing to rent"
    else:
        what, thing = "retry", "the next try"
    return what, f"waits for {thing}" + (f"; the last one failed: {why}" if why else "")


def _write_settled(connection: Connection, settled: Settlement, now: float) -> None:
    for replica_id, reason in settled.drains.items():
        replica = replicas.get(connection, replica_id)
        if _goes_on(replica):
            record_order(connection, replica, orders="drain", reason=reason, now=now)
    for replica_id in settled.tries:
        replicas.change(connection, replica_id, not_before=now)


def _write(connection: Connection, changes: Sequence[_Change], now: float) -> None:
    for change in changes:
        jobs.change(connection, change.job_id, waits=change.waits)
        if change.is_new and change.waits is not None:
            events.append(
                connection,
                EventKind.JOB_WAITS,
                now=now,
                job_id=change.job_id,
                **{
                    name: change.waits[name]
                    for name in ("what", "reason", "replicas_wanted", "place_in_line")
                },
            )
        for replica_id in change.drains:
            replica = replicas.get(connection, replica_id)
            if _goes_on(replica):
                record_order(connection, replica, orders="drain", reason=change.reason, now=now)

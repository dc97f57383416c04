"""Shares the launchers' places between jobs: load who has what, let the pure decision speak, apply.

One decision for all jobs, so that no two take the same place. A job that is to give a place up has a replica drained: it
finishes the chunks that it holds, and nothing is computed twice.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandemn.control.reconcilers.orders import drain
from tandemn.control.reconcilers.quotas import Quotas
from tandemn.control.reconcilers.work import Work, load, worth
from tandemn.control.store import events, jobs
from tandemn.errors import QuotaExceeded
from tandemn.events import EventKind
from tandemn.fleet import sharing
from tandemn.fleet.reasons import NO_CAPACITY_CODES
from tandemn.fleet.sharing import Claim, Pool
from tandemn.protocol.jobs import WaitView

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord
    from tandemn.fleet.launchers.launcher import Launcher
    from tandemn.fleet.sharing import Share

#: Owners of whom it is kept when they last got a place.
SERVED_KEPT = 10_000
#: Of the jobs of the same owner that come first, so many are named.
AHEAD_NAMED = 10


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
        self._quotas = Quotas(services)

    async def look(self) -> list[str]:
        """Decide anew; return the jobs that have not ended, and ended ones that replicas still live of."""
        async with self._lock:
            now = self._services.clock.now()
            work = await self._quotas.settle(await self._services.database.run(load, now), now)
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


def _holders(work: Sequence[Work]) -> dict[str | None, set[str]]:
    found: defaultdict[str | None, set[str]] = defaultdict(set)
    for each in work:
        if each.held:
            found[each.job.cloud].add(each.job.job_id)
    return found


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
        drains = tuple(each.replica_id for each in sorted(work.held, key=worth)[: share.gives_up])
        if told != job.waits or drains:
            yield _Change(
                job_id=job.job_id,
                waits=told,
                is_new=told is not None and told["what"] != (job.waits or {}).get("what"),
                drains=drains,
                reason=share.reason,
            )


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
            drain(connection, replica_id, reason=change.reason, now=now)

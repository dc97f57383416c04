"""Shares quotas that are used up between jobs: load who lacks what, let the pure decision (`scarcity`) speak, apply."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tandemn.control.reconcilers.orders import drain
from tandemn.control.reconcilers.work import goes_on, worth
from tandemn.control.store import jobs, replicas
from tandemn.errors import QuotaExceeded
from tandemn.fleet import scarcity
from tandemn.fleet.reconcile import CAPACITY_BACKOFF_S
from tandemn.protocol.jobs import ReplicaConfig

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sqlalchemy import Connection

    from tandemn.control.reconcilers.work import Work
    from tandemn.control.services import Services
    from tandemn.control.store.records import ReplicaRecord
    from tandemn.fleet.scarcity import Settlement


class Quotas:
    """Remembers for which quotas replicas were drained."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._drained_at: dict[Hashable, float] = {}
        """When replicas of a kind were last drained for a quota."""

    async def settle(self, work: list[Work], now: float) -> list[Work]:
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
            await self._services.database.run(_write, settled, now)
            self._drained_at |= dict.fromkeys(settled.drained, now)
            self._services.pulse.beat("*")
        return [replace(each, most_starts=settled.starts.get(each.job.job_id)) for each in work]


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
                stays=goes_on(each),
                ended_at=each.ended_at,
                lacked_quota=each.code == QuotaExceeded.default_code,
                not_before=each.not_before,
            )
            for each in (
                *sorted(work.fleet, key=worth),
                *(each for each in ended if each.job_id == job.job_id),
            )
        ),
    )


def _kind(replica: ReplicaRecord) -> Hashable:
    """What of its cloud a replica takes; quotas are by family of machines, market and region."""
    config = ReplicaConfig.model_validate(replica.config)
    return replica.launcher, config.gpu, config.market, config.region, config.regions


def _write(connection: Connection, settled: Settlement, now: float) -> None:
    for replica_id, reason in settled.drains.items():
        drain(connection, replica_id, reason=reason, now=now)
    for replica_id in settled.tries:
        replicas.change(connection, replica_id, not_before=now)

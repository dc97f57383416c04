"""Keeps a running job's pace to its deadline: load what is recorded, let the pure decisions speak, apply.

Only a job whose number of replicas the planner chose is paced; `--replicas` is the user's own. What users add, kill or
swap bounds what pacing may want, and a swap under way is left alone.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tandemn.batch.measured_rate import RateMeter
from tandemn.batch.pacing import Growth, PaceDecision, decide
from tandemn.control import cost, views
from tandemn.control.pace import LOG_KINDS, Limits, Paced, Situation, by_market, paced, said, stays
from tandemn.control.reconcilers import fleet as fleet_step
from tandemn.control.reconcilers.orders import record_order
from tandemn.control.store import chunks, events, jobs, replicas
from tandemn.events import EventKind
from tandemn.fleet import reconcile
from tandemn.fleet.regroup import Regrouping, regroup
from tandemn.protocol.jobs import JobState, PaceView, ReplicaConfig
from tandemn.protocol.replicas import Market, ReplicaState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.reconcilers.sharing import Places
    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord

PACED_STATES = frozenset({JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING})
_SWAP_UNDER_WAY = frozenset({"launching", "draining"})


class Pacer:
    """Paces jobs, each once in `pace_s`; what it measured is its only memory."""

    def __init__(self, services: Services, places: Places) -> None:
        self._services = services
        self._places = places
        self._meters: dict[str, RateMeter] = {}
        self._decided: dict[str, float] = {}

    async def step(self, job_id: str) -> None:
        """Decide on one job if it is time to, and record what follows."""
        now, interval_s = self._services.clock.now(), self._services.settings.pace_s
        if now - self._decided.get(job_id, 0.0) < interval_s:
            return
        situation = await self._services.database.run(load, job_id, now)
        if situation is None:
            self._meters.pop(job_id, None)
            self._decided.pop(job_id, None)
            return
        self._decided[job_id] = now
        meter = self._meters.setdefault(job_id, RateMeter())
        meter.hear(said(situation.fleet))
        limits = await self._limits(situation)
        question = paced(situation, meter.requests_per_s(now), limits, interval_s=interval_s)
        if question is None:
            return
        decision = decide(question.pace)
        change = regroup(
            question.wanted,
            question.members,
            decision,
            by_market=by_market(situation, decision),
            vacant=question.vacant,
        )
        if await self._services.database.run(_record, situation, question, decision, change):
            await self._drop(situation, change, decision.reason)
            self._services.pulse.beat(job_id)

    async def _limits(self, situation: Situation) -> Limits:
        launcher = self._services.launchers[situation.job.cloud or "local"]
        price = None
        if situation.budget_left_usd is not None:
            config = ReplicaConfig.model_validate(situation.base | {"market": Market.ON_DEMAND.value})
            price = await asyncio.to_thread(launcher.price, config, situation.now)
        return Limits(
            room=await self._places.room_for(situation.job.job_id),
            cores=os.cpu_count() or 1,
            on_demand_usd_per_hour=None if price is None else float(price.usd_per_hour),
        )

    async def _drop(self, situation: Situation, change: Regrouping, reason: str) -> None:
        """End replicas that were asked for and are not wanted any more; a death before this leaves a surplus one."""
        for replica in situation.fleet:
            if replica.replica_id in change.drops:
                end = reconcile.End(
                    replica_id=replica.replica_id,
                    state=ReplicaState.COMPLETED,
                    reason=f"not launched: {reason}",
                )
                await fleet_step.end(self._services, replica, end)


def load(connection: Connection, job_id: str, now: float) -> Situation | None:
    """Read a job that is to be paced; None: this one is not."""
    job = jobs.get(connection, job_id)
    is_swapping = job.swap is not None and job.swap["state"] in _SWAP_UNDER_WAY
    if job.state not in PACED_STATES or job.spec.replicas is not None or is_swapping or not job.groups:
        return None
    fleet, totals = replicas.of_job(connection, job_id), chunks.totals(connection, job_id)
    requests = views.request_counts(job, totals, [each for each in fleet if not each.state.has_ended])
    if requests.completed + requests.failed >= job.requests:
        return None  # it is about to be sealed
    left = None
    if job.spec.budget_usd is not None:
        left = float(job.spec.budget_usd - cost.of(connection, job, totals, now=now).at_least_usd)
    return Situation(
        now=now,
        job=job,
        fleet=fleet,
        totals=totals,
        requests=requests,
        log=events.of_kinds(connection, LOG_KINDS, job_id=job_id),
        budget_left_usd=left,
    )


def _record(
    connection: Connection,
    situation: Situation,
    question: Paced,
    decision: PaceDecision,
    change: Regrouping,
) -> bool:
    """Write the decision down with all that follows from it; True: something does.

    Nothing is written where the job has moved on since it was read: the next look decides on what it is then.
    """
    now, job = situation.now, jobs.get(connection, situation.job.job_id)
    if (job.state, job.groups, job.swap) != (situation.job.state, situation.job.groups, situation.job.swap):
        return False
    groups = _groups(situation, change, decision)
    new: list[str] = []
    for group, count in change.requests.items():
        new += replicas.request(
            connection,
            job.job_id,
            group=group,
            config=ReplicaConfig.model_validate(groups[group]["config"]),
            launcher=job.cloud or "local",
            count=count,
            now=now,
            reason=f"pacing: {decision.reason}",
        )
    drained = [name for name in change.drains if _drain(connection, name, decision.reason, now)]
    acted = bool(new or drained or change.drops or groups != job.groups)
    view = _view(job, question, decision, acted=acted, now=now)
    jobs.change(connection, job.job_id, groups=groups, pace=view.model_dump(mode="json"))
    if acted or view.is_late != bool(job.pace and job.pace["is_late"]):
        events.append(
            connection,
            EventKind.JOB_PACED,
            now=now,
            job_id=job.job_id,
            replicas_wanted=sum(group["wanted"] for group in groups),
            requested=new,
            drained=drained,
            dropped=list(change.drops),
            requests_per_s=question.pace.rate,
            is_measured=question.pace.is_measured,
            slack_s=decision.slack_s,
            is_late=decision.is_late,
            reason=decision.reason,
        )
    return acted


def _groups(situation: Situation, change: Regrouping, decision: PaceDecision) -> list[dict[str, Any]]:
    old = situation.job.groups
    groups = [group | {"wanted": count} for group, count in zip(old, change.wanted, strict=False)]
    if len(change.wanted) > len(old):
        other = {launch.market.value for launch in decision.launches} - {situation.base["market"]}
        config = situation.base | {"market": other.pop()}
        groups.append({"config": config, "wanted": change.wanted[-1]})
    return groups


def _drain(connection: Connection, replica_id: str, reason: str, now: float) -> bool:
    replica = replicas.get(connection, replica_id)
    if not stays(replica):
        return False
    record_order(connection, replica, orders="drain", reason=f"pacing: {reason}", now=now)
    return True


def _view(job: JobRecord, question: Paced, decision: PaceDecision, *, acted: bool, now: float) -> PaceView:
    pace = question.pace
    before = PaceView.model_validate(job.pace) if job.pace else None
    growth = before.last_growth if before else None
    if decision.wanted > pace.wanted and pace.is_measured:
        working = sum(replica.warm_s <= 0 for replica in pace.replicas)
        growth = asdict(Growth(working=working, requests_per_s=pace.rate * working))
    return PaceView(
        at=now,
        reason=decision.reason,
        replicas_wanted=decision.wanted,
        requests_per_s_each=pace.rate,
        is_measured=pace.is_measured,
        slack_s=decision.slack_s,
        is_late=decision.is_late,
        acted_at=now if acted else before.acted_at if before else None,
        acted_because=decision.reason if acted else before.acted_because if before else None,
        last_growth=growth,
    )

"""Cost as the control plane needs it: the ledger's fold over recorded events, as views and as a verdict."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tandemn.control import deployment_cost
from tandemn.control.figures import amount, figure_view, part_view
from tandemn.control.store import chunks, events, jobs
from tandemn.fleet.reconcile import STOP_GRACE_S
from tandemn.ledger import budget
from tandemn.ledger.figures import total
from tandemn.ledger.fold import fold
from tandemn.ledger.job_cost import COST_EVENTS, JobCost, facts, of_job
from tandemn.ledger.spending import LEFT_OUT, spending
from tandemn.protocol.cost import CostView
from tandemn.protocol.jobs import CostReport, JobCostRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.chunks import ChunkTotals
    from tandemn.control.store.records import EventRecord, JobRecord

#: How long ending a job's replicas takes at the most: the notice, and two looks of the reconciler.
SHUTDOWN_S = STOP_GRACE_S + 2.0


def of(connection: Connection, job: JobRecord, totals: ChunkTotals, *, now: float) -> CostView:
    """Say what one job has cost."""
    return _view(job, events.of_kinds(connection, COST_EVENTS, job_id=job.job_id), totals, now)


def report(connection: Connection, *, limit: int, now: float, owner: str | None = None) -> CostReport:
    """Say what every job, or every job of an owner's, has cost: the newest `limit` one by one, and the total."""
    logged = events.of_kinds(connection, COST_EVENTS)
    if owner is not None:
        mine = jobs.ids_of(connection, owner)
        logged = [event for event in logged if event.job_id in mine]
    of_each: dict[str, list[EventRecord]] = defaultdict(list)
    for event in logged:
        of_each[event.job_id or ""].append(event)
    shown = jobs.page(connection, limit=limit, after=None, states=None, owner=owner)[:limit]
    state = fold(facts(logged))
    everything = [spending(state, job_id, now) for job_id in of_each]
    lives = deployment_cost.lives(connection, owner=owner)
    online = [deployment_cost.of_life(connection, life, now=now) for life in lives]
    return CostReport(
        jobs=[
            JobCostRow(
                job_id=job.job_id,
                owner=job.owner,
                state=job.state,
                model=job.model,
                created_at=job.created_at,
                cost=_view(job, of_each[job.job_id], chunks.totals(connection, job.job_id), now),
            )
            for job in shown
        ],
        jobs_total=jobs.count(connection, owner=owner),
        deployments=[deployment_cost.view(life, cost) for life, cost in zip(lives, online, strict=True)][
            :limit
        ],
        deployments_total=len(lives),
        total=figure_view(total([*(each.spent for each in everything), *(cost.spent for _, cost in online)])),
        usd_per_hour=amount(
            total(
                [
                    *(each.usd_per_hour for each in everything),
                    *(cost.spending.usd_per_hour for _, cost in online),
                ]
            ).usd
        ),
        left_out=list(LEFT_OUT),
    )


def verdict(connection: Connection, job: JobRecord, *, now: float) -> budget.Verdict:
    """Say whether the job's budget lets it go on."""
    cost = of_job(
        events.of_kinds(connection, COST_EVENTS, job_id=job.job_id), job.job_id, tokens=0, now=now
    ).spending
    return budget.decide(cost.spent, cost.usd_per_hour, budget_usd=job.spec.budget_usd, shutdown_s=SHUTDOWN_S)


def _view(job: JobRecord, logged: list[EventRecord], totals: ChunkTotals, now: float) -> CostView:
    cost: JobCost = of_job(logged, job.job_id, tokens=totals.prompt_tokens + totals.output_tokens, now=now)
    spent = cost.spending
    return CostView(
        **figure_view(spent.spent).model_dump(),
        parts=[part_view(each) for each in spent.parts],
        usd_per_hour=amount(spent.usd_per_hour.usd),
        since=spent.since,
        usd_per_million_tokens=amount(cost.usd_per_million_tokens),
        planned_usd=amount(cost.planned_usd),
        budget_usd=job.spec.budget_usd,
        left_out=list(LEFT_OUT),
    )

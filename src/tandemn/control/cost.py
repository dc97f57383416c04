"""Cost as the control plane needs it: the ledger's fold over recorded events, as views and as a verdict."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.control.store import chunks, events, jobs
from tandemn.fleet.reconcile import STOP_GRACE_S
from tandemn.ledger import budget
from tandemn.ledger.figures import Figure, total
from tandemn.ledger.fold import fold
from tandemn.ledger.job_cost import COST_EVENTS, JobCost, facts, of_job
from tandemn.ledger.spending import LEFT_OUT, PartSpending, spending
from tandemn.protocol.cost import CostView, FigureView, PartView
from tandemn.protocol.jobs import CostReport, JobCostRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.chunks import ChunkTotals
    from tandemn.control.store.records import EventRecord, JobRecord

#: How long ending a job's replicas takes at the most: the notice, and two looks of the reconciler.
SHUTDOWN_S = STOP_GRACE_S + 2.0
#: Digits of an amount in an answer.
_DIGITS = Decimal("1e-9")


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
        total=_figure(total(each.spent for each in everything)),
        usd_per_hour=_amount(total(each.usd_per_hour for each in everything).usd),
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
        **_figure(spent.spent).model_dump(),
        parts=[_part(each) for each in spent.parts],
        usd_per_hour=_amount(spent.usd_per_hour.usd),
        since=spent.since,
        usd_per_million_tokens=_amount(cost.usd_per_million_tokens),
        planned_usd=_amount(cost.planned_usd),
        budget_usd=job.spec.budget_usd,
        left_out=list(LEFT_OUT),
    )


def _part(part: PartSpending) -> PartView:
    return PartView(
        **_figure(part.spent).model_dump(),
        part=part.part.value,
        running=part.running,
        seconds=float(part.seconds),
    )


def _figure(figure: Figure) -> FigureView:
    return FigureView(
        usd=_amount(figure.usd),
        at_least_usd=figure.at_least.quantize(_DIGITS),
        unknown=figure.unknown,
        label=figure.label.value if figure.label is not None else None,
    )


def _amount(usd: Decimal | None) -> Decimal | None:
    return usd.quantize(_DIGITS) if usd is not None else None

"""What deployments have cost, from their events and their routers' meters; those that are gone stay in the sum."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.control.figures import amount, figure_view, part_view
from tandemn.control.store import events, meters
from tandemn.control.store.meters import Life, Metered
from tandemn.events import EventKind
from tandemn.ledger.deployment_cost import DeploymentCost, of_deployment
from tandemn.ledger.deployment_facts import COST_EVENTS, backend_logs
from tandemn.ledger.spending import LEFT_OUT
from tandemn.protocol.cost import DeploymentCostView, DifferenceView, RouteView, SavingsView

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from sqlalchemy import Connection

    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.control.store.records import EventRecord
    from tandemn.ledger.counterfactual import Savings
    from tandemn.ledger.deployment_cost import Route
    from tandemn.ledger.spending import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLife:
    """One deployment's events, from the one that submitted it on."""

    life: Life
    owner: str | None
    events: Sequence[EventRecord]


Priced = tuple[Metered, DeploymentCost]


def of(connection: Connection, record: DeploymentRecord, *, now: float) -> DeploymentCostView:
    """Say what one deployment has cost."""
    logged = _logged(connection, record)
    return view(logged, of_life(connection, logged, now=now), budget_usd=record.spec.budget_usd)


def priced(connection: Connection, record: DeploymentRecord, *, now: float) -> DeploymentCost:
    """Price one deployment, for a decision."""
    return of_life(connection, _logged(connection, record), now=now)[1]


def _logged(connection: Connection, record: DeploymentRecord) -> LoggedLife:
    logged = events.of_kinds(connection, COST_EVENTS, service_name=record.service_name)
    return LoggedLife(
        life=Life(service_name=record.service_name, created_at=record.created_at),
        owner=record.owner,
        events=[each for each in logged if each.at >= record.created_at],
    )


def lives(connection: Connection, *, owner: str | None = None) -> list[LoggedLife]:
    """Find every deployment that there was, or every one of an owner's, newest first."""
    of_name: dict[str, list[list[EventRecord]]] = defaultdict(list)
    for event in events.of_kinds(connection, COST_EVENTS):
        if event.service_name is None:
            continue
        if event.kind == EventKind.DEPLOYMENT_SUBMITTED:
            of_name[event.service_name].append([])
        if of_name[event.service_name]:
            of_name[event.service_name][-1].append(event)
    found = [
        LoggedLife(life=Life(service_name=name, created_at=each[0].at), owner=each[0].actor, events=each)
        for name, of_each in of_name.items()
        for each in of_each
    ]
    mine = [each for each in found if owner in {None, each.owner}]
    return sorted(mine, key=lambda each: each.life.created_at, reverse=True)


def of_life(connection: Connection, logged: LoggedLife, *, now: float) -> Priced:
    """Price one deployment."""
    metered = meters.read(connection, logged.life)
    cost = of_deployment(
        meters.owner_of(logged.life), logged.events, meters=metered.totals, periods=metered.periods, now=now
    )
    return metered, cost


def view(logged: LoggedLife, priced: Priced, *, budget_usd: Decimal | None = None) -> DeploymentCostView:
    """Show it as `tandemn cost` has it."""
    metered, cost = priced
    gone = [log.gone_at for log in backend_logs(logged.events).values()]
    return DeploymentCostView(
        **figure_view(cost.spent).model_dump(),
        service_name=logged.life.service_name,
        owner=logged.owner,
        created_at=logged.life.created_at,
        ended_at=max((each for each in gone if each is not None), default=None) if all(gone) else None,
        parts=[part_view(each) for each in cost.spending.parts],
        usd_per_hour=amount(cost.spending.usd_per_hour.usd),
        since=cost.spending.since,
        routes=_routes(cost.routes),
        usd_per_million_tokens=amount(cost.usd_per_million_tokens),
        against_serverless=_savings(cost.against_serverless),
        against_on_demand=_savings(cost.against_on_demand),
        budget_usd=budget_usd,
        differences=[_difference(each) for each in cost.spending.differences],
        metered_at=metered.read_at,
        notes=_notes(metered, cost),
        left_out=list(LEFT_OUT),
    )


def _routes(routes: Sequence[Route]) -> list[RouteView]:
    everything = sum(each.requests for each in routes)
    return [
        RouteView(
            backend=each.backend,
            market=each.market,
            requests=each.requests,
            share=each.requests / everything if everything else None,
            prompt_tokens=each.prompt_tokens,
            completion_tokens=each.completion_tokens,
            estimated_completion_tokens=each.estimated_completion_tokens,
            busy_s=each.busy_s,
        )
        for each in routes
    ]


def _savings(savings: Savings) -> SavingsView:
    return SavingsView(
        instead=figure_view(savings.instead),
        saved_usd=amount(savings.saved_usd),
        saved_share=None if savings.saved_share is None else float(savings.saved_share),
    )


def _difference(difference: Difference) -> DifferenceView:
    return DifferenceView(
        account=difference.account,
        start=difference.start,
        end=difference.end,
        billed_usd=difference.billed_usd,
        metered=figure_view(difference.metered),
        share=None if difference.share is None else float(difference.share),
    )


def _notes(metered: Metered, cost: DeploymentCost) -> list[str]:
    notes = []
    if metered.read_at is None:
        notes.append("its router's meter has not been read yet: serverless time is not in the figures")
    elif not metered.is_complete:
        notes.append(
            "some of the router's busy periods were dropped before they were read: serverless time is too low"
        )
    notes += [
        f"of {backend} only its busy time is known: cold starts and idle time are not in its figure"
        for backend, _ in cost.unseen
    ]
    return notes

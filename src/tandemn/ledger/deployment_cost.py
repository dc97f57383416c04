"""What a deployment has cost, where its requests went, and what they would have cost otherwise (PURE)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.ledger.containers import busy_container_s, together
from tandemn.ledger.counterfactual import Savings, all_on_demand, all_serverless, savings
from tandemn.ledger.deployment_facts import backend_logs, facts
from tandemn.ledger.entries import Label, RuleName
from tandemn.ledger.figures import Figure, per_million, total
from tandemn.ledger.fold import fold
from tandemn.ledger.spending import Spending, spending
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tandemn.ledger.containers import BusyPeriod
    from tandemn.ledger.deployment_facts import BackendLog, LoggedEvent
    from tandemn.ledger.entries import MeterRead
    from tandemn.ledger.fold import State

_SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What went to one backend."""

    backend: str
    market: str | None
    """None: the backend was never planned here."""
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_completion_tokens: int
    busy_s: float
    """Time with at least one request in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentCost:
    spent: Figure
    """With what was worked out for backends of which nothing else is known."""
    spending: Spending
    """Of what was observed, worked out from busy periods, or billed."""
    unseen: tuple[tuple[str, Figure], ...]
    """Backend -> its requests' busy time at its price, without cold starts and idle time."""
    routes: tuple[Route, ...]
    usd_per_million_tokens: Decimal | None
    against_serverless: Savings
    against_on_demand: Savings


def of_deployment(
    owner: str,
    events: Sequence[LoggedEvent],
    *,
    meters: Sequence[MeterRead],
    periods: Mapping[str, Sequence[BusyPeriod]],
    now: float,
) -> DeploymentCost:
    """Sum up what one deployment cost by `now`.

    A backend that served requests, and of which neither a container nor a bill is known, costs what its
    busy time does at the least, or something unknown: never nothing. A bill stands in the estimate's place.

    Args:
        owner: names the deployment in the ledger.
        events: its own, oldest first.
        meters: the running totals of its routers.
        periods: busy periods by backend.
        now: Unix time.
    """
    backends = backend_logs(events)
    state = fold([*facts(owner, events, backends, periods), *meters])
    observed = spending(state, owner, now)
    routes = tuple(
        _route(name, meters, backends.get(name)) for name in sorted({read.backend for read in meters})
    )
    unseen = tuple(_unseen(state, owner, routes, meters, backends))
    spent = observed.spent + total(each for _, each in unseen)
    tokens = sum(route.prompt_tokens + route.completion_tokens for route in routes)
    served = together(periods.values())
    return DeploymentCost(
        spent=spent,
        spending=observed,
        unseen=unseen,
        routes=routes,
        usd_per_million_tokens=per_million(spent, tokens),
        against_serverless=savings(spent, _serverless(backends, served)),
        against_on_demand=savings(spent, _on_demand(backends, served, _until(backends, now))),
    )


def _until(backends: Mapping[str, BackendLog], now: float) -> float:
    """Until when the deployment has been there."""
    gone = [log.gone_at for log in backends.values()]
    ends = [each for each in gone if each is not None]
    return min(now, max(ends)) if backends and len(ends) == len(gone) else now


def _serverless(backends: Mapping[str, BackendLog], served: Sequence[BusyPeriod]) -> Figure:
    """Everything by the serverless backend. Cold starts that spot spared are left out: savings are rather too low."""
    log = next((each for each in backends.values() if each.terms[0].market == Market.SERVERLESS), None)
    if log is None:
        return Figure(unknown=1, label=Label.ESTIMATED)
    latest = log.terms[-1]
    return all_serverless(served, latest.scaling, latest.price)


def _on_demand(backends: Mapping[str, BackendLog], served: Sequence[BusyPeriod], until: float) -> Figure:
    """A fleet on demand that takes the highest peak, up since the deployment was made."""
    log = next((each for each in backends.values() if each.terms[0].market != Market.SERVERLESS), None)
    if log is None:
        return Figure(unknown=1, label=Label.ESTIMATED)
    latest = log.terms[-1]
    return all_on_demand(
        served,
        concurrency=latest.concurrency,
        since=log.terms[0].since,
        until=max(until, log.terms[0].since),
        rule=RuleName.EC2 if latest.rule is not RuleName.EXACT else RuleName.EXACT,
        price=latest.on_demand,
    )


def _route(backend: str, meters: Iterable[MeterRead], log: BackendLog | None) -> Route:
    mine = [read for read in meters if read.backend == backend]
    return Route(
        backend=backend,
        market=None if log is None else log.terms[-1].market,
        requests=sum(read.requests for read in mine),
        prompt_tokens=sum(read.prompt_tokens for read in mine),
        completion_tokens=sum(read.completion_tokens for read in mine),
        estimated_completion_tokens=sum(read.estimated_completion_tokens for read in mine),
        busy_s=sum(spent for read in mine for _, spent in read.inflight_s),
    )


def _unseen(
    state: State,
    owner: str,
    routes: Iterable[Route],
    meters: Sequence[MeterRead],
    backends: Mapping[str, BackendLog],
) -> Iterable[tuple[str, Figure]]:
    started = [item.started for item in state.items.values() if item.started is not None]
    seen = {each.backend for each in started if each.owner == owner}
    billed = {bill.account for bill in state.bills.values() if bill.owner == owner}
    for route in routes:
        log = backends.get(route.backend)
        is_billed = log is not None and log.terms[-1].account in billed
        if not route.requests or route.backend in seen or is_billed:
            continue
        price = None if log is None else log.terms[-1].price
        if log is None or price is None:
            yield route.backend, Figure(unknown=1, label=Label.ESTIMATED)
            continue
        concurrency = log.terms[-1].concurrency
        levels = [dict(read.inflight_s) for read in meters if read.backend == route.backend]
        busy_s = sum(busy_container_s(each, concurrency) for each in levels)
        usd = Decimal(repr(float(busy_s))) * price.usd_per_hour / _SECONDS_PER_HOUR
        yield route.backend, Figure(at_least=usd, label=Label.ESTIMATED)

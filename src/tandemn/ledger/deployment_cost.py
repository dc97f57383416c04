"""What a deployment has cost, and where its requests went: facts and a router's meter, summed up."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.ledger.containers import busy_container_s
from tandemn.ledger.entries import Label
from tandemn.ledger.figures import Figure, per_million, total
from tandemn.ledger.spending import Spending, spending

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tandemn.ledger.entries import MeterRead
    from tandemn.ledger.fold import State
    from tandemn.prices import Price

_SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTerms:
    """What is known of a backend whose containers nobody sees."""

    concurrency: int
    """Requests that one of its containers takes at a time."""
    price: Price | None
    account: str = ""
    """What the provider's bill names it under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What went to one backend."""

    backend: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_completion_tokens: int
    busy_s: float
    """Time with at least one request in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentCost:
    spent: Figure
    """With what was worked out for backends whose containers nobody sees."""
    spending: Spending
    """Of what was observed or billed."""
    unseen: tuple[tuple[str, Figure], ...]
    """Backend -> its requests' busy time at its price, without cold starts and idle time."""
    routes: tuple[Route, ...]
    usd_per_million_tokens: Decimal | None


def of_deployment(
    state: State, owner: str, *, backends: Mapping[str, BackendTerms], now: float
) -> DeploymentCost:
    """Sum up what the deployment `owner` cost by `now`.

    A backend that served requests, and of which neither a container nor a bill is known, costs what its
    busy time does at the least, or something unknown: never nothing. A bill stands in the estimate's place.
    """
    observed = spending(state, owner, now)
    meters = [read for read in state.meters.values() if read.owner == owner]
    routes = tuple(_route(name, meters) for name in sorted({read.backend for read in meters}))
    seen = {
        item.started.backend
        for item in state.items.values()
        if item.started is not None and item.started.owner == owner
    }
    billed = {bill.account for bill in state.bills.values() if bill.owner == owner}
    unseen = tuple(
        (route.backend, _unseen(route, meters, backends.get(route.backend)))
        for route in routes
        if route.requests
        and route.backend not in seen
        and not _is_billed(backends.get(route.backend), billed)
    )
    spent = observed.spent + total(each for _, each in unseen)
    tokens = sum(route.prompt_tokens + route.completion_tokens for route in routes)
    return DeploymentCost(
        spent=spent,
        spending=observed,
        unseen=unseen,
        routes=routes,
        usd_per_million_tokens=per_million(spent, tokens),
    )


def _route(backend: str, meters: Iterable[MeterRead]) -> Route:
    mine = [read for read in meters if read.backend == backend]
    return Route(
        backend=backend,
        requests=sum(read.requests for read in mine),
        prompt_tokens=sum(read.prompt_tokens for read in mine),
        completion_tokens=sum(read.completion_tokens for read in mine),
        estimated_completion_tokens=sum(read.estimated_completion_tokens for read in mine),
        busy_s=sum(spent for read in mine for _, spent in read.inflight_s),
    )


def _unseen(route: Route, meters: Iterable[MeterRead], terms: BackendTerms | None) -> Figure:
    if terms is None or terms.price is None:
        return Figure(unknown=1, label=Label.ESTIMATED)
    busy_s = sum(
        busy_container_s(dict(read.inflight_s), terms.concurrency)
        for read in meters
        if read.backend == route.backend
    )
    usd = Decimal(repr(float(busy_s))) * terms.price.usd_per_hour / _SECONDS_PER_HOUR
    return Figure(at_least=usd, label=Label.ESTIMATED)


def _is_billed(terms: BackendTerms | None, billed: set[str]) -> bool:
    return terms is not None and terms.account in billed

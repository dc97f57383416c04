"""A deployment's event log and its router's busy periods, as facts (PURE).

Spot replicas and the router cost from when they were seen to begin until they were seen to be gone. Serverless
containers nobody sees: they are worked out from the busy periods, by the terms that held then.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol

from tandemn import prices
from tandemn.events import EventKind
from tandemn.ledger.containers import ServerlessTerms, container_facts, containers
from tandemn.ledger.entries import Billed, Ended, Fact, Part, RuleName, Started
from tandemn.prices import Price
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tandemn.ledger.containers import BusyPeriod

#: The events that a deployment's cost is made of.
COST_EVENTS: Final = (
    EventKind.DEPLOYMENT_SUBMITTED,
    EventKind.BACKEND_PLANNED,
    EventKind.BACKEND_STATE,
    EventKind.BACKEND_REPLICAS,
    EventKind.BACKEND_BILLED,
    EventKind.ROUTER_STATE,
)

#: Provider -> the rule that its containers or machines are billed by; others by the time that they live.
_RULES: Final = {
    "modal": RuleName.MODAL,
    "runpod": RuleName.RUNPOD,
    "cloudrun": RuleName.CLOUD_RUN,
    # Google bills instances by the second and at least for a minute, too (cloud.google.com/compute, read 2026-11).
    "skyserve": RuleName.EC2,
    "skypilot": RuleName.EC2,
}
#: States in which nothing of a part exists.
_NOTHING_THERE: Final = frozenset({BackendState.PLANNED.value, BackendState.DELETED.value})
_PARTS: Final = {
    Market.SPOT.value: Part.SPOT,
    Market.ON_DEMAND.value: Part.ON_DEMAND,
    Market.SERVERLESS.value: Part.SERVERLESS,
}


class LoggedEvent(Protocol):
    """What is read of an event."""

    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a backend costs and how it scales, from `since` on."""

    since: float
    provider: str
    market: str
    account: str
    """What the provider's bill names it under."""
    concurrency: int
    scaledown_s: float
    price: Price | None
    on_demand: Price | None
    """The same machine on demand."""

    @property
    def rule(self) -> RuleName:
        return _RULES.get(self.provider, RuleName.EXACT)

    @property
    def scaling(self) -> ServerlessTerms:
        return ServerlessTerms(concurrency=self.concurrency, scaledown_s=self.scaledown_s, rule=self.rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendLog:
    """What the events say of one backend."""

    terms: tuple[Terms, ...]
    """Oldest first; there is one at least."""
    gone_at: float | None

    def at(self, moment: float) -> Terms:
        """The terms that held then."""
        return next((each for each in reversed(self.terms) if each.since <= moment), self.terms[0])


def backend_logs(events: Iterable[LoggedEvent]) -> dict[str, BackendLog]:
    """Read the terms of each backend, by name."""
    terms: dict[str, list[Terms]] = {}
    gone: dict[str, float] = {}
    for event in events:
        name = event.data.get("backend")
        if event.kind == EventKind.BACKEND_PLANNED:
            terms.setdefault(str(name), []).append(_terms(event))
        elif event.kind == EventKind.BACKEND_STATE and event.data.get("state") == BackendState.DELETED:
            gone[str(name)] = event.at
    return {name: BackendLog(terms=tuple(each), gone_at=gone.get(name)) for name, each in terms.items()}


def facts(
    owner: str,
    events: Sequence[LoggedEvent],
    backends: Mapping[str, BackendLog],
    periods: Mapping[str, Sequence[BusyPeriod]],
) -> Iterator[Fact]:
    """Write one deployment's log as facts; `owner` tells it from others that had its name."""
    yield from _replicas(owner, events, backends)
    yield from _router(owner, events)
    for name, log in backends.items():
        if log.terms[0].market == Market.SERVERLESS:
            yield from _containers(owner, name, log, periods.get(name, ()))
    for event in events:
        if event.kind == EventKind.BACKEND_BILLED:
            yield _bill(owner, event)


def _containers(owner: str, name: str, log: BackendLog, periods: Sequence[BusyPeriod]) -> Iterator[Fact]:
    for span in containers(periods, lambda start: log.at(start).scaling):
        terms = log.at(span.start)
        yield from container_facts(
            [span],
            owner=owner,
            backend=name,
            rule=terms.rule,
            price=terms.price,
            account=terms.account,
            until=log.gone_at,
        )


def _replicas(
    owner: str, events: Sequence[LoggedEvent], backends: Mapping[str, BackendLog]
) -> Iterator[Fact]:
    """Spot and on-demand replicas, as their provider told them apart."""
    living: dict[tuple[str, str], str] = {}
    seen: set[str] = set()
    for event in events:
        name = str(event.data.get("backend"))
        if name not in backends or backends[name].terms[0].market == Market.SERVERLESS:
            continue
        running: set[str] = set()
        ended: Mapping[str, float] = {}
        if event.kind == EventKind.BACKEND_REPLICAS:
            running = set(event.data.get("replicas", ()))
            ended = event.data.get("ended", {})
        elif event.kind != EventKind.BACKEND_STATE or event.data.get("state") not in _NOTHING_THERE:
            continue
        for replica_id in sorted(running | ended.keys()):
            item = _item(owner, name, replica_id)
            if item in seen and replica_id in event.data.get("controllers", ()):
                # The share that it was before: what begins again is another item.
                item = f"{item}@{event.at}"
            if item not in seen and (name, replica_id) not in living:
                seen.add(item)
                living[name, replica_id] = item
                yield _started(owner, replica_id, event, backends[name], item=item)
        for key in [key for key in living if key[0] == name and key[1] not in running]:
            yield Ended(at=float(ended.get(key[1], event.at)), item=living.pop(key))


def _started(owner: str, replica_id: str, event: LoggedEvent, log: BackendLog, *, item: str) -> Started:
    at = float(event.data.get("began", {}).get(replica_id, event.at))
    terms = log.at(at)
    own = event.data.get("prices", {}).get(replica_id)
    is_controller = replica_id in event.data.get("controllers", ())
    price = None if is_controller else terms.price
    if own is not None:
        price = Price(usd_per_hour=Decimal(own), source=f"{terms.provider}, of this replica", at=event.at)
    return Started(
        at=at,
        item=item,
        owner=owner,
        part=Part.CONTROLLER if is_controller else _PARTS.get(terms.market, Part.SPOT),
        price=price,
        rule=terms.rule,
        backend="" if is_controller else str(event.data["backend"]),
        account=terms.account,
    )


def _item(owner: str, backend: str, replica_id: str) -> str:
    return f"{owner}/{backend}/{replica_id}"


def _router(owner: str, events: Sequence[LoggedEvent]) -> Iterator[Fact]:
    item, number = None, 0
    for event in events:
        if event.kind != EventKind.ROUTER_STATE:
            continue
        is_there = event.data.get("state") not in _NOTHING_THERE
        if is_there and item is None:
            item, number = f"{owner}/router/{number}", number + 1
            yield Started(
                at=event.at,
                item=item,
                owner=owner,
                part=Part.ROUTER,
                price=prices.from_event({"price_at": event.at, **event.data}),
                rule=_RULES.get(str(event.data.get("provider")), RuleName.EXACT),
            )
        elif not is_there and item is not None:
            yield Ended(at=event.at, item=item)
            item = None


def _bill(owner: str, event: LoggedEvent) -> Billed:
    return Billed(
        at=event.at,
        owner=owner,
        account=event.data["account"],
        part=_PARTS.get(event.data.get("market", ""), Part.SERVERLESS),
        start=event.data["start"],
        end=event.data["end"],
        usd=Decimal(event.data["usd"]),
    )


def _terms(event: LoggedEvent) -> Terms:
    data = event.data
    price = prices.from_event(data)
    on_demand = prices.from_event(
        {**data, "price_usd_per_hour": data.get("on_demand_usd_per_hour"), "price_at": event.at}
    )
    return Terms(
        since=event.at,
        provider=str(data.get("provider")),
        market=str(data.get("market")),
        account=f"{data.get('provider')}/{data.get('remote_name')}",
        concurrency=max(1, int(data.get("concurrency", 1))),
        scaledown_s=float(data.get("scaledown_s", 0.0)),
        price=price,
        on_demand=on_demand,
    )

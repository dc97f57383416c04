"""A job's event log as facts, and what they sum up to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Protocol

from tandemn import prices
from tandemn.events import EventKind
from tandemn.ledger.entries import Ended, Fact, Part, Repriced, RuleName, Started
from tandemn.ledger.figures import per_million
from tandemn.ledger.fold import fold
from tandemn.ledger.spending import Spending, spending
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: The events that a job's cost is made of.
COST_EVENTS = (
    EventKind.JOB_PLANNED,
    EventKind.REPLICA_LAUNCHED,
    EventKind.REPLICA_PLACED,
    EventKind.REPLICA_ENDED,
)

#: Launcher or cloud -> the rule that its machines are billed by.
_RULES = {"aws": RuleName.EC2}


class LoggedEvent(Protocol):
    """What is read of an event."""

    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def job_id(self) -> str | None: ...
    @property
    def replica_id(self) -> str | None: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """What a job has cost by `now`."""

    spending: Spending
    usd_per_million_tokens: Decimal | None
    planned_usd: Decimal | None
    """What the plan expected; None: it could not say."""


def of_job(events: Sequence[LoggedEvent], job_id: str, *, tokens: int, now: float) -> JobCost:
    """Fold the job's events; `tokens` are those read and written by requests that count."""
    spent = spending(fold(facts(events)), job_id, now)
    return JobCost(
        spending=spent,
        usd_per_million_tokens=per_million(spent.spent, tokens),
        planned_usd=_planned(events),
    )


def facts(events: Iterable[LoggedEvent]) -> Iterator[Fact]:
    """Read the events that say something about cost; all others are passed over.

    A replica costs from the record of its launch, which is written first, to the record that it is gone.
    """
    for event in events:
        if event.replica_id is None or event.job_id is None:
            continue
        if event.kind == EventKind.REPLICA_LAUNCHED:
            launcher = event.data.get("launcher")
            yield Started(
                at=event.at,
                item=event.replica_id,
                owner=event.job_id,
                part=_part(launcher, event.data.get("config", {}).get("market")),
                price=prices.from_event(event.data),
                rule=_RULES.get(str(launcher), RuleName.EXACT),
            )
        elif event.kind == EventKind.REPLICA_PLACED:
            yield Repriced(at=event.at, item=event.replica_id, price=prices.from_event(event.data))
        elif event.kind == EventKind.REPLICA_ENDED:
            yield Ended(at=event.at, item=event.replica_id)


def _part(launcher: object, market: object) -> Part:
    if launcher == "local":
        return Part.LOCAL
    return Part.ON_DEMAND if market == Market.ON_DEMAND else Part.SPOT


def _planned(events: Iterable[LoggedEvent]) -> Decimal | None:
    found = None
    for event in events:
        if event.kind == EventKind.JOB_PLANNED:
            found = event.data.get("cost_usd")
    try:
        return Decimal(str(found)) if found is not None else None
    except InvalidOperation:
        return None

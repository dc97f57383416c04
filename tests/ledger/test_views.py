"""Jobs from their event log."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.ledger.log import price

from tandemn import prices
from tandemn.ledger.entries import Label, Part
from tandemn.ledger.job_cost import of_job


@dataclass(frozen=True)
class Event:
    at: float
    kind: str
    replica_id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    job_id: str | None = "job"


def launched(at, replica_id, cost, launcher="local", market="spot"):
    return Event(
        at,
        "replica_launched",
        replica_id,
        {"launcher": launcher, "config": {"market": market}, **prices.to_event(cost)},
    )


def test_a_job_costs_from_launch_to_gone():
    events = [
        Event(0, "job_submitted"),
        Event(1, "job_planned", data={"cost_usd": "12.50"}),
        launched(10, "r0", price(36, "setting")),
        Event(20, "replica_ready", "r0"),
        Event(25, "chunk_completed", "r0", {"chunk": 0}),
        Event(110, "replica_ended", "r0", {"state": "completed"}),
    ]
    cost = of_job(events, "job", tokens=500_000, now=1000)
    assert (cost.spending.spent.usd, cost.spending.spent.label) == (Decimal(1), Label.METERED)
    assert [part.part for part in cost.spending.parts] == [Part.LOCAL]
    assert (cost.usd_per_million_tokens, cost.planned_usd) == (Decimal(2), Decimal("12.50"))


def test_this_machine_is_free_and_that_is_known():
    cost = of_job([launched(0, "r0", price(0, "local machine"))], "job", tokens=0, now=50)
    assert (cost.spending.spent.usd, cost.spending.usd_per_hour.usd) == (Decimal(0), Decimal(0))
    assert (cost.usd_per_million_tokens, cost.planned_usd) == (None, None)


def test_a_launch_recorded_without_a_price_is_unknown():
    old = Event(0, "replica_launched", "r0", {"launcher": "local", "config": {}})
    assert of_job([old], "job", tokens=1, now=0).spending.spent.usd is None
    nonsense = Event(0, "replica_launched", "r0", {"price_usd_per_hour": "NaN", "price_at": 0})
    assert of_job([nonsense], "job", tokens=1, now=9).spending.spent.usd is None


def test_a_cloud_bills_by_its_own_rule():
    events = [
        launched(0, "r0", price(3600), "aws", "on-demand"),
        Event(0.5, "replica_ended", "r0"),
    ]
    spent = of_job(events, "job", tokens=1, now=9).spending
    assert [(part.part, part.spent.usd) for part in spent.parts] == [(Part.ON_DEMAND, Decimal(60))]

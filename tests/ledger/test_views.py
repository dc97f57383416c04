"""Jobs from their event log, deployments from facts and a meter."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.ledger.log import begin, end, price

from tandemn import prices
from tandemn.ledger.deployment_cost import BackendTerms, of_deployment
from tandemn.ledger.entries import Billed, Label, MeterRead, Part
from tandemn.ledger.fold import combine, fold
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


def read(meter, backend, requests, tokens, inflight=()):
    return MeterRead(
        owner="chat",
        meter=meter,
        backend=backend,
        requests=requests,
        prompt_tokens=tokens,
        completion_tokens=tokens,
        inflight_s=inflight,
    )


def test_a_deployment_says_where_its_requests_went_and_what_a_million_tokens_cost():
    log = [
        begin(0, "s0", "36", owner="chat", backend="spot"),
        end(100, "s0"),
        read("m", "spot", 30, 300_000, ((1, 10.0), (2, 5.0))),
        read("m", "modal", 10, 200_000, ((3, 8.0), (5, 2.0))),
    ]
    terms = {"modal": BackendTerms(concurrency=4, price=price(3600), account="modal/chat")}
    cost = of_deployment(fold(log), "chat", backends=terms, now=200)
    assert [(route.backend, route.requests, route.busy_s) for route in cost.routes] == [
        ("modal", 10, 10.0),
        ("spot", 30, 15.0),
    ]
    # 8 s of one container and 2 s of two, beside 100 s of spot at a cent a second.
    assert cost.unseen[0][1].usd == 12
    assert (cost.spent.usd, cost.spent.label) == (Decimal(13), Label.ESTIMATED)
    assert cost.usd_per_million_tokens == 13

    bill = Billed(
        at=150,
        owner="chat",
        account="modal/chat",
        part=Part.SERVERLESS,
        start=0,
        end=150,
        usd=Decimal(20),
    )
    with_bill = of_deployment(fold([*log, bill]), "chat", backends=terms, now=200)
    assert (with_bill.spent.usd, with_bill.unseen) == (Decimal(21), ())


def test_serverless_of_unknown_price_is_unknown_not_free():
    for terms in ({}, {"modal": BackendTerms(concurrency=4, price=None)}):
        cost = of_deployment(fold([read("m", "modal", 1, 5)]), "chat", backends=terms, now=10)
        assert cost.spent.usd is None
        assert cost.spent.unknown == 1


def test_a_router_that_restarts_midway_counts_nothing_twice():
    before = fold([read("m", "spot", 90, 900), read("m", "spot", 100, 1000)])
    # Killed after its last save, it goes on from 95.
    after = fold([read("m", "spot", 95, 950), read("m", "spot", 140, 1400)])
    state = combine(before, after)
    assert of_deployment(state, "chat", backends={}, now=0).routes[0].requests == 140
    # One that lost its file is another meter: both count.
    state = combine(state, fold([read("m2", "spot", 7, 70)]))
    assert of_deployment(state, "chat", backends={}, now=0).routes[0].requests == 147

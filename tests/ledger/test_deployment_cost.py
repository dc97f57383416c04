"""Deployments from their event log and their routers' meters. 3,600 USD an hour make the figures read as seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.ledger.test_containers import busy

from tandemn.ledger.deployment_cost import of_deployment
from tandemn.ledger.deployment_facts import backend_logs, facts
from tandemn.ledger.entries import Label, MeterRead, Part
from tandemn.ledger.fold import combine, fold
from tandemn.ledger.spending import spending

OWNER = "chat@0.0"


@dataclass(frozen=True)
class Event:
    at: float
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


def planned(backend="modal", at=0.0, market="serverless", provider="modal", usd="3600", **more):
    money = {"price_usd_per_hour": usd, "price_source": "test", "price_at": at}
    terms = {"concurrency": 4, "scaledown_s": 60, "remote_name": "tandemn-chat", **more}
    return Event(
        at, "backend_planned", {"backend": backend, "market": market, "provider": provider, **money, **terms}
    )


def spot(at=0.0, **more):
    return planned("spot", at, "spot", "local-spot", **{"on_demand_usd_per_hour": "7200", **more})


def replicas(at, *running, backend="spot", began=None, ended=None, prices=None, controllers=()):
    return Event(
        at,
        "backend_replicas",
        {
            "backend": backend,
            "replicas": list(running),
            "began": began or {},
            "ended": ended or {},
            "prices": prices or {},
            "controllers": list(controllers),
        },
    )


def state(at, backend, word):
    return Event(at, "backend_state", {"backend": backend, "state": word})


def router(at, word, usd="36"):
    return Event(at, "router_state", {"provider": "skypilot", "state": word, "price_usd_per_hour": usd})


def billed(at, start, end, usd):
    data = {"backend": "modal", "market": "serverless", "account": "modal/tandemn-chat"}
    return Event(at, "backend_billed", {**data, "start": start, "end": end, "usd": usd})


def read(backend, requests, tokens=0, inflight=(), meter="m"):
    return MeterRead(
        owner=OWNER,
        meter=meter,
        backend=backend,
        requests=requests,
        prompt_tokens=tokens,
        completion_tokens=tokens,
        inflight_s=inflight,
    )


def cost(events, now, periods=None, meters=()):
    return of_deployment(OWNER, events, meters=meters, periods=periods or {}, now=now)


def parts(events, now, periods=None):
    return {part.part: part.spent.usd for part in cost(events, now, periods).spending.parts}


def test_serverless_is_worked_out_from_busy_periods_and_counts_as_metered():
    log = {"modal": busy((100, 110, 3), (150, 160, 1))}
    found = cost([planned()], 1000, log)
    # One container from the first request to a minute after the last: however many shared it.
    assert (found.spent.usd, found.spent.label) == (Decimal(120), Label.METERED)
    assert found.spending.since == 100


def test_no_container_outlives_its_backend():
    log = {"modal": busy((100, 110, 3))}
    assert cost([planned(), state(120, "modal", "deleted")], 1000, log).spent.usd == Decimal(20)


def test_an_update_changes_the_terms_of_later_periods_only():
    log = {"modal": busy((0, 10, 4), (500, 510, 4))}
    events = [planned(), planned(at=300, concurrency=2, scaledown_s=30, usd="7200")]
    # 70 s of one container, then twice 40 s at twice the price.
    assert cost(events, 1000, log).spent.usd == Decimal(70 + 2 * 40 * 2)


def test_spot_replicas_cost_from_their_beginning_to_their_end_as_their_provider_tells():
    events = [
        spot(),
        replicas(11, "r1", began={"r1": 10.0}),
        # Preempted at 29.5, seen at 31; another one is there.
        replicas(31, "r2", began={"r1": 10.0, "r2": 30.0}, ended={"r1": 29.5}),
        replicas(50),
    ]
    assert parts(events, 100) == {Part.SPOT: Decimal("19.5") + 20}
    # A control plane that was away hears of both ends of a life at once.
    missed = [spot(), replicas(90, began={"r1": 10.0}, ended={"r1": 25.0})]
    assert parts(missed, 100) == {Part.SPOT: Decimal(15)}
    # Without times of its own, a replica lives while it is seen, and never beyond its backend.
    seen = [spot(), replicas(10, "r1"), state(40, "spot", "deleted")]
    assert parts(seen, 100) == {Part.SPOT: Decimal(30)}


def test_a_controller_costs_its_share_while_it_is_so_many_th_and_is_no_replica():
    whole, half = {"controller": "1800"}, {"controller 1/2": "900"}
    events = [
        spot(),
        replicas(0, "controller", prices=whole, controllers=whole),
        replicas(10, "controller 1/2", "r1", prices=half, controllers=half),
        replicas(30, "controller", "r1", prices=whole, controllers=whole),
        state(40, "spot", "deleted"),
    ]
    # 10 s at a half, 20 s at a quarter, 10 s at a half.
    assert parts(events, 100) == {Part.SPOT: Decimal(30), Part.CONTROLLER: Decimal(15)}
    unknown = cost([spot(), replicas(0, "controller", controllers=["controller"])], 100)
    assert (unknown.spent.usd, unknown.spent.unknown) == (None, 1), "never at the replicas' price"


def test_a_replica_may_have_a_price_of_its_own_and_one_without_is_unknown():
    own = [spot(), replicas(0, "r1", prices={"r1": "1800"})]
    assert parts(own, 100) == {Part.SPOT: Decimal(50)}
    unknown = cost([spot(usd=None), replicas(0, "r1")], 100)
    assert (unknown.spent.usd, unknown.spent.unknown) == (None, 1)


def test_the_router_costs_from_its_creation_to_its_end_and_again_where_it_was_made_anew():
    events = [router(0, "creating"), router(5, "ready"), router(100, "planned"), router(200, "creating")]
    assert parts(events, 300) == {Part.ROUTER: Decimal("2.00")}
    assert parts([*events, router(250, "deleted")], 999) == {Part.ROUTER: Decimal("1.60")}


def test_a_bill_takes_the_place_of_what_was_metered_and_the_difference_shows():
    log = {"modal": busy((0, 40, 1))}
    found = cost([planned(), billed(200, 0, 200, "120")], 1000, log)
    assert (found.spent.usd, found.spent.label) == (Decimal(120), Label.BILLED)
    assert [(each.billed_usd, each.share) for each in found.spending.differences] == [
        (Decimal(120), Decimal("0.2"))
    ]
    assert cost([planned(), billed(200, 0, 200, "104")], 1000, log).spending.differences == ()


def test_where_requests_went_and_what_a_million_tokens_cost():
    meters = [read("spot", 30, 300_000, ((1, 10.0), (2, 5.0))), read("modal", 10, 200_000, ((3, 8.0),))]
    found = cost([planned(), spot(), replicas(0, "r1")], 100, {"modal": busy((0, 40, 3))}, meters)
    assert [(r.backend, r.market, r.requests, r.busy_s) for r in found.routes] == [
        ("modal", "serverless", 10, 8.0),
        ("spot", "spot", 30, 15.0),
    ]
    assert (found.spent.usd, found.usd_per_million_tokens) == (Decimal(200), Decimal(200))


def test_a_backend_of_which_only_requests_are_known_is_estimated_or_unknown_never_free():
    meters = [read("modal", 1, 0, ((3, 8.0), (5, 2.0)))]
    found = cost([planned()], 100, meters=meters)
    assert (found.spent.usd, found.spent.label, len(found.unseen)) == (Decimal(12), Label.ESTIMATED, 1)
    assert cost([planned(usd=None)], 100, meters=meters).spent.usd is None
    assert cost([], 100, meters=meters).spent.usd is None
    assert cost([planned(usd=None)], 1000, {"modal": busy((0, 1, 1))}).spent.usd is None


def test_a_router_that_restarts_midway_counts_nothing_twice():
    # Killed after its last save, it goes on from 95; one that lost its file is another meter.
    meters = [read("modal", 100), read("modal", 95), read("modal", 140), read("modal", 7, meter="m2")]
    state = fold(meters)
    assert sum(each.requests for each in state.meters.values()) == 147


def test_savings_replay_the_same_requests_by_the_same_rules():
    events = [planned(), spot(usd="360"), replicas(0, "r1")]
    log = {"modal": busy((0, 40, 1)), "spot": busy((40, 940, 4))}
    found = cost(events, 1000, log)
    # 100 s serverless and 1000 s of spot at a tenth; serverless alone would have run for 1000 s.
    assert found.spent.usd == Decimal(200)
    assert found.against_serverless.instead.usd == Decimal(1000)
    assert found.against_serverless.saved_share == Decimal("0.8")
    # One machine on demand at twice the price, up all the time.
    assert found.against_on_demand.instead.usd == Decimal(2000)
    assert found.against_on_demand.label is Label.ESTIMATED


def test_without_an_on_demand_price_savings_against_it_are_unknown():
    found = cost([planned(), spot(on_demand_usd_per_hour=None)], 10)
    assert found.against_on_demand.saved_usd is None
    assert cost([planned()], 10).against_on_demand.saved_usd is None


TIMELINE = [
    planned(),
    spot(),
    router(1, "creating"),
    replicas(5, "a", began={"a": 4.0}),
    replicas(20, "a", "b"),
    replicas(33, "b", began={"a": 4.0}, ended={"a": 30.0}),
    planned(at=40, concurrency=2, usd="1800"),
    billed(60, 0, 50, "31"),
    state(70, "spot", "deleted"),
    router(80, "deleted"),
]
PERIODS = {"modal": busy((0, 10, 3), (12, 20, 9), (41, 50, 3), (200, 210, 1))}


@given(st.integers(0, 40), st.integers(0, 500), st.integers(0, 60))
def test_the_fold_of_a_deployment_may_be_split_anywhere_and_never_becomes_less(cut, now, later):
    written = list(facts(OWNER, TIMELINE, backend_logs(TIMELINE), PERIODS))
    whole = fold(written)
    split = combine(fold(written[:cut]), fold(written[cut:]))
    assert split == whole
    first, second = (spending(whole, OWNER, at).spent.at_least for at in (now, now + later))
    assert 0 <= first <= second or now < 60 <= now + later, "only a bill may correct what was metered"

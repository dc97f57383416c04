"""Decisions under a clock that moves only when told to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.clock import MockClock
from tandemn.router.routing import (
    DEMAND_S,
    FAILURES_TO_OPEN,
    MAX_TRIES,
    OPEN_MAX_S,
    OVERFLOW_HOLD_S,
    POKE_S,
    PROBE_IDLE_S,
    Candidate,
    Fault,
    Overflow,
    ProbeResult,
    State,
    Step,
    after_answer,
    after_failure,
    after_fault,
    after_notice,
    after_probe,
    first_standing,
    make_plan,
    pick,
    poke_due,
)
from tandemn.router.table import Market, Probe

NOW = 1000.0


def candidate(name, market=Market.SPOT, state=State.READY, **more):
    standing = replace(first_standing(Probe.NEVER, draining=False, now=0.0), state=state)
    fields: dict[str, Any] = {
        "price": 0.0,
        "inflight": 0,
        "replicas": 1,
        "room": None,
        "ttft_s": None,
        "waiting_s": 0.0,
    }
    return Candidate(name=name, market=market, standing=standing, **(fields | more))


def names(plan):
    return [[choice.name for choice in tier] for tier in plan.tiers]


def picked(made, counts, excluded=()):
    choice = pick(made, counts, excluded)
    return choice and choice.name


def plan(*candidates, previous=None, now=NOW, spot_ttft_s=None):
    return make_plan(candidates, previous or Overflow(), spot_ttft_s=spot_ttft_s, now=now)


# --- a backend's life -----------------------------------------------------------------------------------


def test_a_spot_backend_comes_up_and_goes():
    clock = MockClock()
    standing = first_standing(Probe.DEMAND, draining=False, now=clock.now())
    assert standing.state is State.COLD
    standing = after_probe(standing, ProbeResult.BUSY, clock.advance(1))
    assert standing.state is State.WARMING
    standing = after_probe(standing, ProbeResult.WELL, clock.advance(60))
    assert standing.state is State.READY
    for _ in range(FAILURES_TO_OPEN - 1):
        standing = after_failure(standing, "reset", clock.advance(0.1))
        assert standing.state is State.READY, "one error condemns nobody"
    standing = after_failure(standing, "reset", clock.advance(0.1))
    assert standing.state is State.DOWN
    assert "reset" in standing.reason
    assert after_probe(standing, ProbeResult.WELL, clock.now()) is standing, "too early"
    standing = after_probe(standing, ProbeResult.ABSENT, clock.advance(2))
    assert standing.state is State.COLD


def test_an_answer_between_failures_keeps_the_circuit_closed():
    standing = first_standing(Probe.NEVER, draining=False, now=NOW)
    for _ in range(20):
        standing = after_failure(standing, "x", NOW)
        standing = after_failure(standing, "x", NOW)
        standing = after_answer(standing, NOW)
    assert standing.state is State.READY


def test_a_circuit_that_opens_again_stays_open_longer_but_not_for_ever():
    standing, now, pauses = first_standing(Probe.NEVER, draining=False, now=NOW), NOW, []
    for _ in range(FAILURES_TO_OPEN + 8):
        standing = after_failure(standing, "x", now)
        if standing.state is State.DOWN:
            pauses.append(standing.retry_at - now)
            now = standing.retry_at
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[1]
    assert pauses[-1] == OPEN_MAX_S


def test_failures_of_many_streams_at_once_open_it_once():
    standing = first_standing(Probe.NEVER, draining=False, now=NOW)
    for _ in range(250):
        standing = after_failure(standing, "lost", NOW)
    assert standing.opens == 1


def test_a_notice_drains_whatever_is_heard_after_it():
    standing = first_standing(Probe.ALWAYS, draining=False, now=NOW)
    standing = after_notice(standing, draining=True, probing=Probe.ALWAYS, now=NOW)
    for moved in (
        after_answer(standing, NOW),
        after_failure(standing, "x", NOW),
        after_probe(standing, ProbeResult.WELL, NOW),
    ):
        assert moved.state is State.DRAINING
    assert after_notice(standing, draining=False, probing=Probe.ALWAYS, now=NOW).state is State.COLD


@given(st.lists(st.sampled_from(["answer", "failure", *ProbeResult]), max_size=60))
def test_no_history_leads_to_a_state_without_a_way_out(history):
    standing, now = first_standing(Probe.DEMAND, draining=False, now=NOW), NOW
    for happened in history:
        now += 0.3
        match happened:
            case "answer":
                standing = after_answer(standing, now)
            case "failure":
                standing = after_failure(standing, "x", now)
            case result:
                standing = after_probe(standing, ProbeResult(result), now)
        assert standing.reason
    assert after_probe(standing, ProbeResult.WELL, now + OPEN_MAX_S).state is State.READY


# --- pokes ----------------------------------------------------------------------------------------------


def due(probing, state, *, last_poke=NOW - 60, last_answer=NOW - 60, last_request=NOW, now=NOW):
    standing = replace(first_standing(probing, draining=False, now=0.0), state=state)
    return poke_due(
        standing, probing, last_poke=last_poke, last_answer=last_answer, last_request=last_request, now=now
    )


def test_what_must_sleep_is_never_poked():
    assert not any(due(Probe.NEVER, state) for state in State)


def test_a_cold_spot_backend_is_poked_often_while_there_is_demand_only():
    assert due(Probe.DEMAND, State.COLD, last_poke=NOW - POKE_S)
    assert not due(Probe.DEMAND, State.COLD, last_poke=NOW - POKE_S / 2)
    assert not due(Probe.DEMAND, State.COLD, last_request=NOW - DEMAND_S - 1)
    assert due(Probe.DEMAND, State.COLD, last_poke=-math.inf, last_request=-math.inf), "once at the start"
    assert due(Probe.ALWAYS, State.COLD, last_request=-math.inf)


def test_a_ready_backend_is_probed_when_it_was_idle():
    assert due(Probe.ALWAYS, State.READY, last_answer=NOW - PROBE_IDLE_S)
    assert not due(Probe.ALWAYS, State.READY, last_answer=NOW - 1)
    assert not due(Probe.ALWAYS, State.DRAINING)


# --- the plan -------------------------------------------------------------------------------------------


def test_the_cheapest_ready_backend_comes_first_and_what_is_not_ready_last():
    made = plan(
        candidate("modal", Market.SERVERLESS),
        candidate("cold", state=State.COLD),
        candidate("down", state=State.DOWN),
        candidate("dear", price=2.0),
        candidate("cheap", price=1.0),
        candidate("demand", Market.ON_DEMAND),
        candidate("leaving", state=State.DRAINING),
    )
    assert names(made) == [["cheap"], ["dear"], ["demand"], ["modal"], ["down"], ["cold"]]
    assert made.reason == "cheapest ready: cheap"


def test_equals_share_the_load_by_replica():
    made = plan(candidate("a", replicas=1), candidate("b", replicas=3))
    counts = {"a": 0, "b": 0}
    for _ in range(40):
        counts[str(picked(made, counts))] += 1
    assert counts == {"a": 10, "b": 30}


def test_a_full_backend_is_passed_over_and_nothing_is_left_when_all_are_full():
    made = plan(candidate("spot", room=2), candidate("modal", Market.SERVERLESS, room=1))
    assert picked(made, {"spot": 1, "modal": 0}) == "spot"
    assert picked(made, {"spot": 2, "modal": 0}) == "modal"
    assert pick(made, {"spot": 2, "modal": 1}) is None
    assert picked(made, {"spot": 0, "modal": 0}, excluded=("spot",)) == "modal"


def test_overflow_by_load_has_hysteresis():
    modal = candidate("modal", Market.SERVERLESS)
    full = plan(candidate("spot", room=10, inflight=10), modal)
    assert full.overflow.active
    assert names(full) == [["modal"], ["spot"]]
    assert "10 requests in flight" in full.reason
    still = plan(candidate("spot", room=10, inflight=9), modal, previous=full.overflow)
    assert still.overflow.active
    over = plan(candidate("spot", room=10, inflight=7), modal, previous=still.overflow)
    assert not over.overflow.active
    assert not plan(candidate("spot", room=10, inflight=9), modal).overflow.active


def test_overflow_by_ttft_follows_serverless_and_holds():
    modal = candidate("modal", Market.SERVERLESS, ttft_s=1.0)
    assert not plan(candidate("spot", ttft_s=2.9), modal).overflow.active
    slow = plan(candidate("spot", ttft_s=3.1), modal)
    assert slow.overflow.active
    assert "TTFT 3.10 s" in slow.reason
    fast = candidate("spot", ttft_s=0.1)
    assert plan(fast, modal, previous=slow.overflow, now=NOW + 1).overflow.active
    assert not plan(fast, modal, previous=slow.overflow, now=NOW + OVERFLOW_HOLD_S).overflow.active
    assert plan(candidate("spot", waiting_s=9.0), modal).overflow.active, "what waits is slow already"
    assert plan(
        candidate("spot", ttft_s=2.1), candidate("modal", Market.SERVERLESS, ttft_s=0.1)
    ).overflow.active
    assert not plan(candidate("spot", ttft_s=2.1), modal, spot_ttft_s=5.0).overflow.active


def test_there_is_no_overflow_without_serverless():
    assert not plan(
        candidate("spot", room=1, inflight=1), candidate("other", Market.ON_DEMAND)
    ).overflow.active


def test_a_serverless_circuit_is_tried_by_a_request_when_its_time_has_come():
    down = candidate("modal", Market.SERVERLESS, state=State.DOWN)
    early = replace(down, standing=replace(down.standing, retry_at=NOW + 1))
    assert names(plan(early, candidate("dear", Market.SERVERLESS, price=9.0))) == [["dear"], ["modal"]]
    assert names(plan(down, candidate("dear", Market.SERVERLESS, price=9.0))) == [["modal"], ["dear"]]


def test_an_empty_plan_says_why():
    assert plan(candidate("x", state=State.DRAINING)).reason == "no backend, or all of them drain"


# --- after a failed try ---------------------------------------------------------------------------------


def verdict(fault, **more):
    fields: dict[str, Any] = {
        "method": b"POST",
        "tries": 1,
        "is_sent": True,
        "is_kept": True,
        "has_other": True,
    }
    return after_fault(fault, **(fields | more)).step


@pytest.mark.parametrize(
    ("fault", "more", "step"),
    [
        (Fault.CLOSED, {}, Step.ELSEWHERE),
        (Fault.ERROR_STATUS, {}, Step.ELSEWHERE),
        (Fault.STALE, {}, Step.SAME),
        (Fault.CLOSED, {"has_other": False}, Step.SAME),
        (Fault.CLOSED, {"has_other": False, "tries": 2}, Step.GIVE_UP),
        (Fault.REFUSED, {"has_other": False}, Step.GIVE_UP),
        (Fault.ERROR_STATUS, {"has_other": False}, Step.PASS_ON),
        (Fault.BUSY, {"has_other": False}, Step.PASS_ON),
        (Fault.ERROR_STATUS, {"is_kept": False}, Step.PASS_ON),
        (Fault.CLOSED, {"is_kept": False}, Step.GIVE_UP),
        (Fault.CLOSED, {"method": b"DELETE"}, Step.GIVE_UP),
        (Fault.REFUSED, {"method": b"DELETE", "is_sent": False}, Step.ELSEWHERE),
        (Fault.CLOSED, {"tries": MAX_TRIES}, Step.GIVE_UP),
    ],
)
def test_after_a_failed_try(fault, more, step):
    assert verdict(fault, **more) is step

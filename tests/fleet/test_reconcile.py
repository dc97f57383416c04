"""What the fleet decision does, rule by rule: no clock, no process, no database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandemn.fleet.reconcile import (
    BACKOFF_S,
    CAPACITY_BACKOFF_S,
    FAILURES_LIMIT,
    HELLO_S,
    SILENT_S,
    STOP_GRACE_S,
    End,
    Fleet,
    GiveUp,
    MoveSwap,
    Order,
    Presence,
    Replica,
    Request,
    Start,
    Swap,
    Terminate,
    decide,
    wanted_after,
)
from tandemn.protocol.replicas import Goodbye, Market, ReplicaState

NOW = 1000.0


def replica(name="r0", state=ReplicaState.RUNNING, **values):
    defaults = {
        "replica_id": name,
        "group": 0,
        "state": state,
        "market": Market.SPOT,
        "presence": Presence.THERE,
        "created_at": 0.0,
        "launched_at": 0.0,
        "said_hello": True,
        "last_seen": NOW,
    }
    return Replica(**{**defaults, **values})


def pending(name="r0", **values):
    values = {"launched_at": None, "said_hello": False, "last_seen": None, **values}
    return replica(name, ReplicaState.PENDING, presence=Presence.GONE, **values)


def ended(name, state=ReplicaState.FAILED, ended_at=NOW, **values):
    return replica(name, state, presence=Presence.GONE, ended_at=ended_at, **values)


def test_a_requested_replica_is_started():
    assert decide(Fleet(wanted=(1,), replicas=(pending(),)), NOW) == [Start(replica_id="r0")]


def test_no_more_are_started_than_there_is_room_for():
    fleet = Fleet(wanted=(3,), replicas=tuple(pending(f"r{i}") for i in range(3)), may_start=2)
    assert decide(fleet, NOW) == [Start(replica_id="r0"), Start(replica_id="r1")]


def test_a_healthy_fleet_is_left_alone():
    assert decide(Fleet(wanted=(2,), replicas=(replica("r0"), replica("r1"))), NOW) == []


def test_a_vanished_spot_replica_was_preempted_and_is_replaced_at_once():
    gone = replica("r0", presence=Presence.GONE, requests_done=5)
    [end] = decide(Fleet(wanted=(1,), replicas=(gone,)), NOW)
    assert isinstance(end, End)
    assert end.state is ReplicaState.PREEMPTED
    after = ended("r0", ReplicaState.PREEMPTED, requests_done=5)
    [request] = decide(Fleet(wanted=(1,), replicas=(after,)), NOW)
    assert isinstance(request, Request)
    assert (request.count, request.not_before) == (1, NOW)


def test_a_vanished_on_demand_replica_has_failed():
    gone = replica(presence=Presence.GONE, market=Market.ON_DEMAND)
    [end] = decide(Fleet(wanted=(1,), replicas=(gone,)), NOW)
    assert isinstance(end, End)
    assert (end.state, end.code) == (ReplicaState.FAILED, "replica_lost")


def test_failures_in_a_row_are_replaced_ever_later():
    waits = []
    for failures in range(1, FAILURES_LIMIT):
        row = tuple(ended(f"r{i}", ended_at=NOW + i) for i in range(failures))
        [request] = decide(Fleet(wanted=(1,), replicas=row), NOW + failures)
        assert isinstance(request, Request)
        waits.append(request.not_before - row[-1].ended_at)
    assert waits == [BACKOFF_S[0] * 2**i for i in range(FAILURES_LIMIT - 1)]


def test_too_many_failures_in_a_row_end_the_job_with_the_last_reason():
    row = tuple(ended(f"r{i}", ended_at=NOW + i, reason="no CUDA") for i in range(FAILURES_LIMIT))
    [action] = decide(Fleet(wanted=(1,), replicas=row), NOW + 9)
    assert isinstance(action, GiveUp)
    assert "no CUDA" in action.reason


def test_progress_breaks_the_row_of_failures():
    row = [ended(f"r{i}", ended_at=NOW + i) for i in range(FAILURES_LIMIT)]
    row[1] = replace(row[1], requests_done=3)
    assert isinstance(decide(Fleet(wanted=(1,), replicas=tuple(row)), NOW + 9)[0], Request)


def test_a_failure_that_every_replica_would_repeat_ends_the_job_at_once():
    [action] = decide(Fleet(wanted=(1,), replicas=(ended("r0", code="model_not_found"),)), NOW)
    assert isinstance(action, GiveUp)
    assert action.code == "model_not_found"


def test_the_job_is_not_given_up_while_another_replica_works():
    fleet = Fleet(wanted=(2,), replicas=(replica("r0"), ended("r1", code="model_not_found")))
    assert decide(fleet, NOW) == []


def test_a_killed_replica_is_stopped_and_not_replaced():
    killed = replica("r0", kill_requested=True)
    [order] = decide(Fleet(wanted=(0,), replicas=(killed,)), NOW)
    assert order == Order(replica_id="r0", orders="stop", reason="killed by request")
    gone = replace(killed, orders="stop", presence=Presence.GONE)
    [end] = decide(Fleet(wanted=(0,), replicas=(gone,)), NOW)
    assert isinstance(end, End)
    assert end.state is ReplicaState.KILLED


def test_a_stopping_replica_is_ended_by_force_after_its_grace():
    stopping = replica(orders="stop", stopping_at=NOW, state=ReplicaState.DRAINING)
    fleet = Fleet(wanted=(0,), replicas=(stopping,), needs_replicas=False)
    assert decide(fleet, NOW + STOP_GRACE_S) == []
    assert isinstance(decide(fleet, NOW + STOP_GRACE_S + 1)[0], Terminate)


def test_a_silent_replica_is_ended_by_force():
    silent = replica(last_seen=NOW - SILENT_S - 1)
    assert isinstance(decide(Fleet(wanted=(1,), replicas=(silent,)), NOW)[0], Terminate)


def test_a_replica_that_never_reports_is_ended_by_force():
    lost = replica(state=ReplicaState.LAUNCHING, said_hello=False, last_seen=None)
    assert decide(Fleet(wanted=(1,), replicas=(lost,)), HELLO_S) == []
    assert isinstance(decide(Fleet(wanted=(1,), replicas=(lost,)), HELLO_S + 1)[0], Terminate)


def test_one_that_said_goodbye_is_terminated_until_it_is_seen_to_be_gone():
    leaving = replica(goodbye=Goodbye(outcome="preempted", reason="the cloud took it"))
    assert isinstance(decide(Fleet(wanted=(1,), replicas=(leaving,)), NOW)[0], Terminate)
    gone = replace(leaving, presence=Presence.GONE)
    [end] = decide(Fleet(wanted=(1,), replicas=(gone,)), NOW)
    assert isinstance(end, End)
    assert (end.state, end.reason) == (ReplicaState.PREEMPTED, "the cloud took it")


def test_a_goodbye_that_says_failed_keeps_its_code():
    goodbye = Goodbye(outcome="failed", code="engine_start_failed", reason="out of memory")
    gone = replica(goodbye=goodbye, presence=Presence.GONE)
    [end] = decide(Fleet(wanted=(1,), replicas=(gone,)), NOW)
    assert isinstance(end, End)
    assert (end.state, end.code) == (ReplicaState.FAILED, "engine_start_failed")


def test_when_the_job_is_over_everything_ends_unless_it_persists():
    fleet = Fleet(wanted=(2,), replicas=(replica("r0"), pending("r1")), needs_replicas=False)
    first, second = decide(fleet, NOW)
    assert isinstance(first, Order)
    assert isinstance(second, End)
    kept = decide(replace(fleet, persist=True), NOW)
    assert [type(action) for action in kept] == [End]


class TestSwap:
    swap = Swap(state="launching", new_group=1, threshold=2)

    old = (replica("old"),)

    def fleet(self, *new, swap=None, old=old):
        return Fleet(wanted=(1, 2), replicas=(*old, *new), swap=swap or self.swap)

    def test_the_old_stay_until_enough_of_the_new_compute(self):
        new = (replica("n0", group=1, began=True), replica("n1", group=1))
        assert decide(self.fleet(*new), NOW) == []

    def test_then_the_old_drain(self):
        new = (replica("n0", group=1, began=True), replica("n1", group=1, began=True))
        [move] = decide(self.fleet(*new), NOW)
        assert isinstance(move, MoveSwap)
        assert move.to == "draining"
        draining = replace(self.swap, state="draining")
        [order] = decide(replace(self.fleet(*new, swap=draining), wanted=(0, 2)), NOW)
        assert order == Order(replica_id="old", orders="drain", reason="swapped out")

    def test_it_is_done_when_the_old_are_gone(self):
        draining = replace(self.swap, state="draining")
        old = (ended("old", ReplicaState.SWAPPED_OUT),)
        [move] = decide(self.fleet(swap=draining, old=old), NOW)
        assert isinstance(move, MoveSwap)
        assert move.to == "done"

    def test_killing_new_replicas_lowers_the_threshold_and_killing_all_cancels(self):
        new = replica("n1", group=1, began=True)
        [move] = decide(replace(self.fleet(new), wanted=(1, 1)), NOW)
        assert isinstance(move, MoveSwap)
        assert (move.to, wanted_after((1, 1), new_group=1, to=move.to)) == ("draining", [0, 1])
        [move] = decide(replace(self.fleet(), wanted=(1, 0)), NOW)
        assert isinstance(move, MoveSwap)
        assert (move.to, wanted_after((1, 0), new_group=1, to=move.to)) == ("cancelled", [1, 0])

    def test_a_drained_old_replica_ends_as_swapped_out(self):
        draining = replace(self.swap, state="draining")
        goodbye = Goodbye(outcome="completed")
        old = (replica("old", orders="drain", presence=Presence.GONE, goodbye=goodbye),)
        new = (replica("n0", group=1), replica("n1", group=1))
        fleet = replace(self.fleet(*new, swap=draining, old=old), wanted=(0, 2))
        [end] = decide(fleet, NOW)
        assert isinstance(end, End)
        assert end.state is ReplicaState.SWAPPED_OUT

    def test_new_replicas_that_fail_leave_the_old_in_place(self):
        [move] = decide(self.fleet(ended("n0", group=1, code="model_not_found", reason="no")), NOW)
        assert isinstance(move, MoveSwap)
        assert move.to == "failed"
        failed = replace(self.swap, state="failed")
        new = replica("n1", group=1)
        fleet = replace(self.fleet(new, swap=failed), wanted=(1, 0))
        assert decide(fleet, NOW) == [
            Order(replica_id="n1", orders="stop", reason="the swap that brought it was failed")
        ]


@pytest.mark.parametrize("state", [state for state in ReplicaState if state.has_ended])
def test_what_has_ended_stays_ended(state):
    fleet = Fleet(wanted=(0,), replicas=(ended("r0", state),), needs_replicas=False)
    assert decide(fleet, NOW) == []


def test_a_full_store_ends_the_job_though_answers_were_computed():
    """Computing again what cannot be stored would go on for ever."""
    full = ended("r0", code="store_full", reason="the store has been full for 60 s", requests_done=500)
    (action,) = decide(Fleet(wanted=(1,), replicas=(full,)), NOW)
    assert isinstance(action, GiveUp)
    assert action.code == "store_full"
    assert "the store has been full" in action.reason


def test_a_replica_that_worked_and_failed_otherwise_is_replaced():
    worked = ended("r0", code="engine_died", requests_done=500)
    (action,) = decide(Fleet(wanted=(1,), replicas=(worked,)), NOW)
    assert isinstance(action, Request)


def test_a_market_with_nothing_to_rent_is_waited_for_longer_and_never_given_up():
    row = [ended(f"r{i}", code="no_capacity", ended_at=NOW + i) for i in range(40)]
    [request] = decide(Fleet(wanted=(1,), replicas=tuple(row)), NOW)
    assert isinstance(request, Request)
    assert request.not_before == row[-1].ended_at + CAPACITY_BACKOFF_S


@pytest.mark.parametrize(
    ("values", "is_given_up"),
    [
        ({"last_seen": NOW - SILENT_S}, False),
        ({"last_seen": NOW - SILENT_S - 1}, True),
        ({"said_hello": False, "last_seen": None, "launched_at": NOW - SILENT_S}, False),
        ({"said_hello": False, "last_seen": None, "launched_at": NOW - SILENT_S - 1}, True),
        ({"goodbye": Goodbye(outcome="completed")}, True),
    ],
)
def test_a_replica_on_a_machine_that_cannot_be_looked_at_is_judged_by_its_calls(values, is_given_up):
    """Its control plane was on that machine, and may be gone with it: there is nobody to end its process."""
    far = replica(presence=Presence.ELSEWHERE, **values)
    actions = decide(Fleet(wanted=(1,), replicas=(far,)), NOW)
    assert bool(actions) == is_given_up
    assert all(isinstance(action, End) for action in actions)

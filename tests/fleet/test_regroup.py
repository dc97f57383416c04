from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.batch.pacing import Launch, PaceDecision
from tandemn.fleet.regroup import Bounds, Member, counted, regroup
from tandemn.protocol.replicas import Market

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
BY_MARKET = {SPOT: 0, ON_DEMAND: 1}


def member(name, group=0, **values):
    usual = Member(
        replica_id=name, group=group, market=ON_DEMAND if group else SPOT, is_pending=False, began=True
    )
    return replace(usual, **values)


def decision(wanted, launches=(), releases=()):
    return PaceDecision(
        wanted=wanted,
        launches=tuple(launches),
        releases=tuple(releases),
        slack_s=0.0,
        is_late=False,
        reason="because",
    )


def test_on_pace_nothing_changes():
    change = regroup([2], [member("a"), member("b")], decision(2), by_market={SPOT: 0})
    assert (change.wanted, change.requests, change.drains, change.drops) == ((2,), {}, (), ())


def test_more_are_asked_for():
    change = regroup([1], [member("a")], decision(3, [Launch(market=SPOT)] * 2), by_market={SPOT: 0})
    assert (change.wanted, change.requests) == ((3,), {0: 2})


def test_a_lost_one_is_replaced_by_its_own_group():
    change = regroup([2], [member("a")], decision(2, [Launch(market=SPOT)]), by_market={SPOT: 0})
    assert (change.wanted, change.requests) == ((2,), {})


def test_released_ones_drain_and_pending_ones_are_dropped():
    fleet = [member("a"), member("b"), member("c", is_pending=True, began=False)]
    change = regroup([3], fleet, decision(1, releases=["c", "b"]), by_market={SPOT: 0})
    assert (change.wanted, change.drops, change.drains) == ((1,), ("c",), ("b",))


def test_a_move_to_on_demand_keeps_the_old_one_until_the_new_one_computes():
    launch = Launch(market=ON_DEMAND, instead_of="a")
    change = regroup([1], [member("a")], decision(1, [launch]), by_market=BY_MARKET)
    assert (change.wanted, change.requests, change.drains) == ((0, 1), {1: 1}, ())
    fleet = [member("a"), member("b", 1, began=False)]
    assert regroup([0, 1], fleet, decision(1), by_market=BY_MARKET).drains == ()
    fleet = [member("a"), member("b", 1)]
    assert regroup([0, 1], fleet, decision(1), by_market=BY_MARKET).drains == ("a",)


def test_waiting_for_spot_becomes_on_demand():
    waiting = member("a", is_pending=True, began=False)
    change = regroup(
        [1], [waiting], decision(1, [Launch(market=ON_DEMAND)]), by_market=BY_MARKET, vacant=[waiting]
    )
    assert (change.wanted, change.requests, change.drops) == ((0, 1), {1: 1}, ("a",))


def test_spot_that_did_not_come_back_lets_its_on_demand_replica_stay():
    """On-demand was to be swapped for spot; spot is closed again before it came."""
    waiting, old = member("s", is_pending=True, began=False), member("d", 1)
    change = regroup(
        [1, 0], [waiting, old], decision(1, [Launch(market=ON_DEMAND)]), by_market=BY_MARKET, vacant=[waiting]
    )
    assert change.wanted == (0, 1)
    assert (change.requests, change.drains, change.drops) == ({}, (), ("s",))


def test_what_users_added_goes_last():
    fleet = [member("a"), member("b", is_by_hand=True, began=False), member("c")]
    assert [each.replica_id for each in counted([1], fleet)] == ["b"]
    assert regroup([2], fleet, decision(2), by_market={SPOT: 0}).drains == ()  # b does not compute yet
    fleet = [member("a"), member("b", is_by_hand=True), member("c")]
    assert regroup([2], fleet, decision(2), by_market={SPOT: 0}).drains == ("c",)


def test_bounds_follow_what_users_do():
    assert Bounds().added(3) == Bounds(least=3, most=None)
    assert Bounds().added(3).killed(2) == Bounds(least=2, most=2)
    assert Bounds().killed(1).added(3) == Bounds(least=3, most=3)
    assert Bounds().killed(1).swapped(2, is_fixed=False) == Bounds(least=2, most=None)
    assert Bounds().swapped(2, is_fixed=True) == Bounds(least=2, most=2)


@given(
    wanted=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    fleet=st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.booleans()), max_size=10),
    change=st.integers(-4, 4),
)
def test_places_and_replicas_always_add_up(wanted, fleet, change):
    members = [
        member(f"r{i}", group, is_pending=is_pending, began=began and not is_pending)
        for i, (group, is_pending, began) in enumerate(fleet)
    ]
    there = counted(wanted, members)
    count = max(sum(wanted) + change, 0)
    releases = [each.replica_id for each in there[: max(len(there) - count, 0)]]
    missing = 0 if releases else max(count - len(there), 0)
    made = decision(count, [Launch(market=ON_DEMAND)] * missing, releases)
    if releases and len(there) - len(releases) != count:
        return
    result = regroup(wanted, members, made, by_market=BY_MARKET)
    assert min(result.wanted) >= 0
    assert not set(result.drains) & set(result.drops)
    gone = {*result.drains, *result.drops}
    began = sum(each.began for each in members if each.replica_id not in gone)
    assert began >= min(sum(result.wanted), sum(each.began for each in members))


@pytest.mark.parametrize("group", [0, 1])
def test_nothing_is_drained_before_its_successor_computes(group):
    fleet = [member("a", group), member("b", 1 - group, began=False)]
    wanted = [0, 0]
    wanted[1 - group] = 1
    assert regroup(wanted, fleet, decision(1), by_market=BY_MARKET).drains == ()

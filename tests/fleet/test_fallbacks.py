"""Walking the plan's list: what the fleet decision does where the market has nothing to rent."""

from dataclasses import replace

import pytest
from tests.fleet.test_reconcile import NOW, ended, replica

from tandemn.control.groups import describe, fallen_back
from tandemn.fleet.reconcile import (
    End,
    FallBack,
    Fleet,
    GiveUp,
    LaunchFailure,
    Presence,
    Request,
    Start,
    Terminate,
    Walk,
    decide,
)
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market, ReasonCode, ReplicaState


def lacking(name: str, at: float):
    """One whose launch found nothing to rent."""
    return ended(name, code="no_capacity", reason=f"none in {name}", created_at=at - 10, ended_at=at)


def test_what_cannot_be_had_falls_back_to_the_plans_next_choice():
    fleet = Fleet(wanted=(1,), replicas=(lacking("r0", NOW - 1),), walks=(Walk(left=2),))
    assert decide(fleet, NOW) == [FallBack(group=0, reason="none in r0")]


def test_failures_from_before_a_fallback_say_nothing_about_it():
    fleet = Fleet(wanted=(1,), replicas=(lacking("r0", NOW - 1),), walks=(Walk(left=1, since=NOW - 5),))
    [request] = decide(fleet, NOW)
    assert isinstance(request, Request)
    assert request.not_before == NOW


def test_a_plan_that_is_walked_to_its_end_gives_up_and_says_what_was_tried():
    walk = Walk(tried=("L4 TP1 spot: none in r0",), since=NOW - 50)
    fleet = Fleet(wanted=(1,), replicas=(lacking("r1", NOW - 1),), walks=(walk,))
    [given_up] = decide(fleet, NOW)
    assert isinstance(given_up, GiveUp)
    assert given_up.code == "no_capacity"
    assert "L4 TP1 spot: none in r0; none in r1" in given_up.reason


def test_a_quota_that_other_jobs_have_is_waited_for():
    lacks = replace(lacking("r0", NOW - 1), code="quota_exceeded")
    fleet = Fleet(wanted=(1,), replicas=(lacks,), walks=(Walk(),))
    assert isinstance(decide(fleet, NOW)[0], GiveUp)
    [request] = decide(replace(fleet, quota_returns=True), NOW)
    assert isinstance(request, Request)
    [elsewhere] = decide(replace(fleet, quota_returns=True, walks=(Walk(left=1),)), NOW)
    assert isinstance(elsewhere, FallBack), "what the plan has behind it comes first"


@pytest.mark.parametrize("others", [(replica("r1", group=1),), (replica("r1"),)])
def test_a_market_that_is_empty_is_waited_for_while_the_job_goes_on(others):
    fleet = Fleet(wanted=(2, 1), replicas=(lacking("r0", NOW - 1), *others), walks=(Walk(), None))
    actions = decide(fleet, NOW)
    assert any(isinstance(action, Request) and action.group == 0 for action in actions)
    assert not any(isinstance(action, (GiveUp, FallBack)) for action in actions)


@pytest.mark.parametrize("state", [ReplicaState.PENDING, ReplicaState.LAUNCHING])
@pytest.mark.parametrize("group", [0, 1])
def test_launches_that_fail_one_after_another_do_not_keep_each_others_hope(state, group):
    """None is asked for again before the last of them has its verdict: each would outlive the other, for ever."""
    other = replica("r1", state, said_hello=False, group=group)
    fleet = Fleet(wanted=(2 - group, group), replicas=(lacking("r0", NOW - 1), other), walks=(Walk(), Walk()))
    assert [each for each in decide(fleet, NOW) if not isinstance(each, Start)] == []
    both = replace(fleet, replicas=(lacking("r0", NOW - 1), replace(lacking("r1", NOW), group=group)))
    assert any(isinstance(each, GiveUp) for each in decide(both, NOW))
    had = replace(fleet, replicas=(lacking("r0", NOW - 1), replica("r1", ReplicaState.STARTING, group=group)))
    assert any(isinstance(each, Request) for each in decide(had, NOW))


def test_a_launch_that_failed_later_ends_with_what_its_launcher_saw():
    failure = LaunchFailure(code="no_capacity", reason="none anywhere")
    failed = replica("r0", ReplicaState.LAUNCHING, presence=Presence.GONE, launch_failure=failure)
    end = decide(Fleet(wanted=(1,), replicas=(failed,)), NOW)[0]
    assert isinstance(end, End)
    assert (end.state, end.code, end.reason) == (ReplicaState.FAILED, "no_capacity", "none anywhere")
    assert end.reason_code is ReasonCode.LAUNCH_CAPACITY_EXHAUSTED


def test_one_that_was_never_heard_of_is_not_waited_for():
    told = replica(
        "r0",
        ReplicaState.DRAINING,
        orders="stop",
        kill_requested=True,
        stopping_at=NOW - 3,
        launched_at=NOW - 9,
    )
    assert decide(Fleet(wanted=(0,), replicas=(told,)), NOW) == []
    [terminate] = decide(Fleet(wanted=(0,), replicas=(replace(told, said_hello=False),)), NOW)
    assert isinstance(terminate, Terminate)


def config(gpu: str, **values):
    return ReplicaConfig(gpu=gpu, market=Market.SPOT, **values).model_dump(mode="json")


def test_a_fallback_replaces_what_is_missing_and_keeps_what_is_there():
    group = {
        "config": config("L4"),
        "wanted": 4,
        "fallbacks": [{"config": config("A10G", tp=2), "wanted": 6}, {"config": config("T4"), "wanted": 20}],
    }
    after = fallen_back(group, alive=2, now=NOW, reason="none")
    assert after["config"]["gpu"] == "A10G"
    assert after["wanted"] == 2 + 3
    assert [each["config"]["gpu"] for each in after["fallbacks"]] == ["T4"]
    assert after["since"] == NOW
    last = fallen_back(after, alive=0, now=NOW + 1, reason="none either")
    assert last["wanted"] == 20
    assert last["tried"] == ["L4 TP1 spot: none", "A10G TP2 spot: none either"]


def test_a_configuration_is_named_as_people_do():
    assert describe(config("A100", tp=2, dp=4)) == "A100 TP2 x4 spot"

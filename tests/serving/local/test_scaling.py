import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.protocol.deployments import SpotScaling
from tandemn.serving.local.scaling import (
    LONGEST_BACKOFF_S,
    Member,
    Scale,
    Traffic,
    backoff_s,
    next_scale,
    serverless_change,
    spot_change,
)

POLICY = SpotScaling(min_replicas=0, max_replicas=4, target_qps=10, upscale_delay=5, downscale_delay=300)
#: Before this nothing has happened.
BEGIN = 1_000_000.0


class World:
    """Spot's target second by second, under requests that come evenly."""

    def __init__(self, policy=POLICY):
        self.policy, self.traffic, self.scale, self.now = policy, Traffic(), Scale(), BEGIN

    def live(self, seconds, qps=0.0):
        for _ in range(round(seconds)):
            for number in range(round(qps)):
                self.traffic.note(self.now + number / qps)
            self.now += 1
            self.scale = next_scale(
                self.policy,
                self.scale,
                rate=self.traffic.rate(self.now),
                last_request=self.traffic.last_request,
                now=self.now,
            )
        return self.scale.target


def test_without_requests_there_is_nothing():
    assert World().live(1000) == 0


def test_the_least_is_there_at_once_and_stays():
    world = World(POLICY.model_copy(update={"min_replicas": 2}))
    assert world.live(1) == 2
    assert world.live(1000) == 2


def test_one_request_brings_one_replica_after_the_delay_and_keeps_it_for_the_other():
    world = World()
    assert world.live(1, qps=1) == 0
    assert world.live(4) == 0
    assert world.live(1) == 1
    assert world.live(290) == 1
    assert world.live(10) == 0
    assert world.scale.reason == "no request for 300 s"


def test_a_burst_within_the_delay_brings_no_more_than_a_request_does():
    world = World()
    world.live(1, qps=1)
    world.live(20)
    assert world.live(3, qps=40) == 1
    assert world.live(20) == 1


def test_traffic_that_stays_brings_what_it_needs_and_no_more_than_the_policy_has():
    assert World().live(20, qps=25) == 3
    assert World().live(20, qps=500) == 4


def test_it_shrinks_only_when_traffic_was_lower_for_the_whole_delay():
    world = World()
    assert world.live(120, qps=30) == 3
    assert world.live(250, qps=1) == 3  # the window forgets for a minute of these
    assert world.live(60, qps=30) == 3
    assert world.live(310, qps=1) == 3
    assert world.live(50, qps=1) == 1


def test_a_request_under_way_is_traffic():
    world = World()
    world.live(10, qps=1)
    for _ in range(400):
        world.traffic.still_busy(world.now)
        world.live(1)
    assert world.scale.target == 1


def test_another_policy_holds_at_once():
    world = World()
    world.live(60, qps=40)
    world.policy = POLICY.model_copy(update={"max_replicas": 2})
    assert world.live(1, qps=40) == 2
    assert world.scale.reason == "the policy wants 0 to 2"


@given(
    least=st.integers(0, 3),
    more=st.integers(0, 3),
    target=st.integers(0, 9),
    rate=st.floats(0, 1e6),
    age=st.floats(0, 1e6),
)
def test_the_target_is_always_within_the_policy(least, more, target, rate, age):
    policy = SpotScaling(min_replicas=least, max_replicas=max(1, least + more))
    scale = next_scale(policy, Scale(target=target), rate=rate, last_request=BEGIN - age, now=BEGIN)
    assert policy.min_replicas <= scale.target <= policy.max_replicas
    assert scale.reason


def member(name, **more):
    return Member(**{"replica_id": name, "is_ready": True, "is_current": True, **more})


def test_what_died_is_replaced():
    assert spot_change([member("a")], 3).start == 2


def test_the_least_useful_go_first():
    members = [member("busy", inflight=9), member("booting", is_ready=False), member("idle")]
    assert spot_change(members, 2).end == ("booting",)
    assert spot_change(members, 1).end == ("booting", "idle")


def test_replicas_of_a_former_plan_go_when_their_successors_are_ready():
    former = [member("old1", is_current=False), member("old2", is_current=False)]
    assert spot_change(former, 2).start == 2
    assert spot_change(former, 2).end == ()
    half = [*former, member("new1"), member("new2", is_ready=False)]
    assert (spot_change(half, 2).start, len(spot_change(half, 2).end)) == (0, 1)
    whole = [*former, member("new1"), member("new2")]
    assert sorted(spot_change(whole, 2).end) == ["old1", "old2"]
    assert sorted(spot_change(former, 0).end) == ["old1", "old2"]


def serverless(members, waiting=0, now=BEGIN, **more):
    bounds = {"concurrency": 4, "least": 0, "most": 3, "scaledown_window": 60, **more}
    return serverless_change(members, waiting=waiting, now=now, **bounds)


def test_containers_are_started_for_requests_that_wait():
    assert serverless([]).start == 0
    assert serverless([], waiting=1).start == 1
    assert serverless([], waiting=9).start == 3
    assert serverless([], waiting=100).start == 3
    assert serverless([member("a", inflight=4)], waiting=1).start == 1
    assert serverless([member("a", is_ready=False)], waiting=4).start == 0
    assert serverless([], least=2).start == 2


def test_a_container_ends_after_the_window_and_one_that_is_busy_does_not():
    idle = member("a", idle_since=BEGIN - 59)
    assert serverless([idle]).end == ()
    assert serverless([idle], now=BEGIN + 1).end == ("a",)
    assert serverless([idle], now=BEGIN + 1, least=1).end == ()
    assert serverless([member("a", idle_since=0, inflight=1)]).end == ()
    pair = [member("young", idle_since=BEGIN - 70), member("old", idle_since=BEGIN - 90)]
    assert serverless(pair, least=1).end == ("old",)
    assert serverless(pair, waiting=1).end == ("old",)


def test_a_container_of_a_former_plan_takes_nothing_new():
    change = serverless([member("old", is_current=False, inflight=2)], waiting=1)
    assert (change.start, change.end) == (1, ("old",))


@pytest.mark.parametrize(("failures", "wait"), [(0, 0), (1, 1), (2, 2), (3, 4), (7, 60), (10_000, 60)])
def test_starts_that_fail_are_tried_again_ever_more_seldom(failures, wait):
    assert backoff_s(failures) == wait <= LONGEST_BACKOFF_S


def test_the_rate_sees_a_rise_at_once_and_forgets_slowly():
    traffic = Traffic()
    assert traffic.rate(BEGIN) == 0
    assert traffic.last_request == -math.inf
    for second in range(5):
        for _ in range(20):
            traffic.note(BEGIN + second)
    assert traffic.rate(BEGIN + 5) == 20
    assert traffic.rate(BEGIN + 30) == pytest.approx(100 / 59)
    assert traffic.rate(BEGIN + 70) == 0

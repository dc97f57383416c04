from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tandemn.batch.pacing import Launch, Pace, PacedReplica, decide
from tandemn.protocol.replicas import Market

HOUR = 3600.0
SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


def replica(name="a", market=SPOT, warm=0.0, usd=1.0):
    return PacedReplica(replica_id=name, market=market, warm_s=warm, usd_per_hour=usd)


def pace(**fields):
    usual = Pace(
        now=0.0,
        started=0.0,
        deadline=4 * HOUR,
        total=7200.0,
        remaining=7200.0,
        rate=1.0,
        wanted=1,
        max_replicas=8,
        replicas=[],
        open_zones=["z1", "z2"],
        changeover_s=300.0,
        interval_s=60.0,
    )
    return replace(usual, **fields)


def test_on_pace_nothing_changes():
    decision = decide(pace(replicas=[replica()]))
    assert (decision.launches, decision.releases, decision.wanted) == ((), (), 1)
    assert "on pace" in decision.reason


def test_a_lost_spot_replica_is_replaced_on_spot():
    assert decide(pace()).launches == (Launch(market=SPOT, zone="z1"),)


def test_without_spot_it_waits_while_there_is_slack():
    decision = decide(pace(open_zones=[]))
    assert decision.launches == ()
    assert "waiting" in decision.reason


def test_without_spot_it_goes_on_demand_in_time():
    decision = decide(pace(open_zones=[], deadline=2.2 * HOUR))
    assert decision.launches == (Launch(market=ON_DEMAND),)
    assert not decision.is_late


def test_on_demand_is_swapped_for_spot_that_is_back():
    decision = decide(pace(replicas=[replica(market=ON_DEMAND)]))
    assert decision.launches == (Launch(market=SPOT, zone="z1", instead_of="a"),)


def test_near_the_deadline_on_demand_stays():
    decision = decide(pace(replicas=[replica(market=ON_DEMAND)], deadline=7200.0 + 550))
    assert decision.launches == ()


def test_spot_that_would_be_up_too_late_becomes_on_demand():
    decision = decide(pace(replicas=[replica(warm=290.0)], deadline=7200.0 + 400))
    assert decision.launches == (Launch(market=ON_DEMAND, instead_of="a"),)


def test_slower_than_predicted_adds_replicas():
    decision = decide(pace(rate=0.3, replicas=[replica()]))
    assert decision.wanted == 2
    assert len(decision.launches) == 1


def test_measured_faster_releases_on_demand_first():
    running = [replica("s"), replica("d", ON_DEMAND, usd=3.0), replica("t")]
    decision = decide(pace(wanted=3, replicas=running, rate=2.0, deadline=8 * HOUR))
    assert decision.wanted == 1
    assert decision.releases[0] == "d"
    assert len(decision.releases) == 2


def test_what_users_want_is_not_exceeded():
    decision = decide(pace(rate=0.01, max_replicas=3, replicas=[replica()]))
    assert decision.wanted == 3
    assert decision.is_late
    assert "late" in decision.reason


def test_new_replicas_are_spread_over_zones():
    decision = decide(pace(wanted=4, rate=0.4))
    assert {launch.zone for launch in decision.launches} == {"z1", "z2"}


def test_on_demand_only_never_touches_spot():
    decision = decide(pace(spot_allowed=False))
    assert decision.launches == (Launch(market=ON_DEMAND),)


def test_done_releases_everything():
    decision = decide(pace(remaining=0.0, replicas=[replica("a"), replica("b")]))
    assert decision.releases == ("a", "b")
    assert decision.wanted == 0


@settings(max_examples=200)
@given(
    available=st.lists(st.booleans(), min_size=1, max_size=400),
    factor=st.floats(1.1, 4.0),
    changeover=st.floats(0.0, 300.0),
)
def test_one_replica_never_misses_its_deadline_whatever_spot_does(available, factor, changeover):
    """Spot appears and vanishes at random once a minute; preemption is seen at the next decision."""
    tick, work = 60.0, 3600.0
    deadline = work * factor + changeover
    now, remaining, warm, index = 0.0, work, 0.0, 0
    market: Market | None = None
    while remaining > 1e-6:
        is_open = available[index % len(available)]
        if market is SPOT and not is_open:
            market = None
        running = [] if market is None else [replica(market=market, warm=warm)]
        decision = decide(
            pace(
                now=now,
                deadline=deadline,
                total=work,
                remaining=remaining,
                max_replicas=1,
                replicas=running,
                open_zones=["z"] if is_open else [],
                changeover_s=changeover,
                interval_s=tick,
            )
        )
        for launch in decision.launches:
            market, warm = launch.market, changeover
        if market is not None:
            done = min(max(tick - warm, 0.0), remaining)
            step = warm + done if done == remaining else tick
            remaining, warm = remaining - done, max(warm - tick, 0.0)
            now += step
        else:
            now += tick
        index += 1
    assert now <= deadline + 1e-6


@given(
    rate=st.floats(0.01, 10),
    remaining=st.floats(1, 1e6),
    now=st.floats(0, 5 * HOUR),
    wanted=st.integers(1, 8),
    running=st.integers(0, 8),
)
def test_it_never_asks_for_more_than_it_may(rate, remaining, now, wanted, running):
    fleet = [replica(str(i), ON_DEMAND if i % 2 else SPOT) for i in range(running)]
    decision = decide(pace(rate=rate, remaining=remaining, now=now, wanted=wanted, replicas=fleet))
    assert 1 <= decision.wanted <= 8
    new = [launch for launch in decision.launches if launch.instead_of is None]
    assert running + len(new) - len(decision.releases) <= max(8, running)
    assert not (new and decision.releases)
    assert decision.reason


def test_a_reason_is_for_people():
    assert decide(pace(open_zones=[])).reason == "waiting for spot (120 minutes of slack)"

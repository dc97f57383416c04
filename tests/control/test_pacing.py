"""Pacing with everything real but the cloud: database, fleet reconciler, pacer, in simulated time."""

from __future__ import annotations

import pytest
from tests.fakes.spot_cloud import JOB, World

from tandemn.control import operations
from tandemn.control.store import replicas
from tandemn.protocol.jobs import AddRequest, SwapRequest
from tandemn.protocol.replicas import Market, ReplicaState

#: Hours here have twenty minutes: a start of 40 s is to them what two minutes are to an hour.
HOUR = 1200.0


@pytest.fixture
def world(tmp_path):
    made = []

    def make(**values):
        made.append(World(tmp_path, **values))
        return made[-1]

    yield make
    for each in made:
        each.close()


def fleet_of(world):
    return world.database.run_sync(replicas.of_job, JOB)


def live(world):
    return [each for each in fleet_of(world) if not each.state.has_ended]


def markets(world):
    return {each.market for each in world.cloud.machines.values()}


async def test_a_job_on_plan_is_left_alone(world):
    job = world(requests=1200, deadline_s=2 * HOUR, rate=1.0)
    assert await job.run() < 2 * HOUR
    assert len(job.cloud.machines) == 1
    assert job.paced() == []
    assert "on pace" in job.status().pace.reason


async def test_slower_than_planned_gets_replicas_and_is_in_time(world):
    job = world(requests=2000, deadline_s=2 * HOUR, rate=0.4, planned_rate=1.5)
    assert await job.run() <= 2 * HOUR
    assert len(job.cloud.machines) in {3, 4}
    assert markets(job) == {Market.SPOT}
    assert "replicas instead of 1, to be in time at the measured rate" in job.paced()[0]["reason"]


async def test_far_ahead_replicas_are_released_by_draining(world):
    job = world(requests=3333, deadline_s=3 * HOUR, rate=1.5, planned_rate=0.4, replicas_planned=4)
    assert await job.run() <= 3 * HOUR
    released = [each for each in fleet_of(job) if each.orders == "drain"]
    assert released
    assert all(each.state is ReplicaState.COMPLETED for each in released)
    assert any("fewer will do" in each["reason"] for each in job.paced())


async def test_spot_that_vanishes_becomes_on_demand_in_time_and_spot_again(world):
    """Gone after 20 minutes, back for good after two hours; three hours are given for one and a half of work."""
    job = world(
        requests=1800,
        deadline_s=2.5 * HOUR,
        rate=1.0,
        spot=lambda now: not 400 < now < 2 * HOUR,
    )
    assert await job.run() <= 2.5 * HOUR
    assert markets(job) == {Market.SPOT, Market.ON_DEMAND}
    reasons = [each["reason"] for each in job.paced()]
    assert any(reason.startswith("on-demand, to be in time") for reason in reasons)
    assert len(live(job)) <= 2
    dear = [each for each in job.cloud.machines.values() if each.market is Market.ON_DEMAND]
    assert sum((each.ended_at or job.clock.now()) - each.launched_at for each in dear) < 1.8 * HOUR


async def test_without_any_spot_it_is_in_time_on_demand(world):
    job = world(requests=1200, deadline_s=1.5 * HOUR, rate=1.0, spot=lambda _: False)
    assert await job.run() <= 1.5 * HOUR
    assert markets(job) == {Market.ON_DEMAND}
    assert len(job.cloud.machines) == 1


async def test_on_demand_is_not_taken_where_the_budget_does_not_last_for_it(world):
    job = world(requests=1200, deadline_s=1.5 * HOUR, rate=1.0, spot=lambda _: False, budget_usd="0.5")
    await job.run(most_s=2 * HOUR)
    assert job.cloud.machines == {}
    assert job.status().pace.is_late


async def test_a_successor_computes_before_the_old_one_drains(world):
    job = world(requests=1800, deadline_s=2.5 * HOUR, rate=1.0, spot=lambda now: not 400 < now < 1.2 * HOUR)
    worked = []

    def watched(world):
        worked.append(sum(each.done for each in world.cloud.machines.values()))
        return False

    await job.run(until=watched)
    back = next(i for i, each in enumerate(job.cloud.machines.values()) if each.market is Market.ON_DEMAND)
    last = list(job.cloud.machines.values())[back]
    assert last.ended_at is not None
    spot = [each for each in list(job.cloud.machines.values())[back + 1 :] if each.market is Market.SPOT]
    assert spot[0].launched_at + job.start_s <= last.ended_at


async def test_a_kill_by_hand_is_not_undone(world):
    job = world(requests=2000, deadline_s=HOUR, rate=1.0, replicas_planned=3)
    await job.run(until=lambda each: each.clock.now() > 200)
    answer = await operations.kill(job.services, JOB, [live(job)[0].replica_id], actor="me")
    assert answer.replicas_wanted == 2
    await job.run()
    assert len(job.cloud.machines) == 3
    assert job.clock.now() > HOUR * 0.75
    assert job.status().pace.replicas_wanted == 2


async def test_all_killed_by_hand_stay_killed(world):
    job = world(requests=2000, deadline_s=HOUR, rate=1.0)
    await job.run(until=lambda each: each.clock.now() > 200)
    before = len(job.cloud.machines)
    await operations.kill(job.services, JOB, [each.replica_id for each in live(job)], actor="me")
    await job.run(most_s=HOUR)
    assert live(job) == []
    assert len(job.cloud.machines) == before


async def test_an_add_by_hand_is_not_undone(world):
    job = world(requests=2000, deadline_s=20 * HOUR, rate=1.0)
    await job.run(until=lambda each: each.clock.now() > 200)
    await operations.add(job.services, JOB, AddRequest(replicas=2), actor="me")
    await job.run(until=lambda each: each.clock.now() > 500)
    assert len(live(job)) == 3
    assert all(each.orders == "go_on" for each in live(job))


async def test_a_swap_by_hand_is_not_undone_and_its_number_stands(world):
    job = world(requests=4000, deadline_s=2 * HOUR, rate=1.0, replicas_planned=2)
    await job.run(until=lambda each: each.clock.now() > 200)
    await operations.swap(job.services, JOB, SwapRequest(gpu="H100", replicas=1), actor="me")
    await job.run()
    new = [each for each in fleet_of(job) if each.config["gpu"] == "H100"]
    assert len(new) == 1
    assert {each.config["gpu"] for each in live(job)} == {"H100"}
    assert job.status().pace.is_late


async def test_after_a_swap_without_a_number_replicas_are_added_of_the_new_kind(world):
    job = world(requests=4000, deadline_s=2 * HOUR, rate=1.0, replicas_planned=1)
    await job.run(until=lambda each: each.clock.now() > 100)
    await operations.swap(job.services, JOB, SwapRequest(gpu="H100"), actor="me")
    assert await job.run() <= 2 * HOUR
    assert len([each for each in fleet_of(job) if each.config["gpu"] == "H100"]) > 1


async def test_what_pacing_decided_survives_a_restart(world):
    from tandemn.control.reconcilers.pacing import Pacer

    job = world(requests=2000, deadline_s=2 * HOUR, rate=0.4, planned_rate=1.5)
    await job.run(until=lambda each: len(each.paced()) > 0)
    job.pacer = Pacer(job.services, job.places)
    assert await job.run() <= 2 * HOUR
    assert len(job.cloud.machines) <= 4


async def test_adding_in_vain_stops(world):
    """However many replicas there are, the job goes at one speed: something else is its bound."""
    job = world(requests=2000, deadline_s=1.5 * HOUR, rate=0.5, planned_rate=1.5, on_demand=True)
    whole = job.rate

    def shared(world):
        working = sum(
            world.clock.now() - each.launched_at > world.start_s for each in world.cloud.alive().values()
        )
        world.rate = whole / max(working, 1)
        return False

    await job.run(until=shared, most_s=3 * HOUR)
    assert 2 <= len(job.cloud.machines) <= 4
    assert "brought nothing" in job.status().pace.reason

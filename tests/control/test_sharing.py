"""Two users' jobs on one cloud, in simulated time: the control plane's own reconcilers, a database and a launcher's seam."""

from __future__ import annotations

import pytest
from tests.fakes.spot_cloud import CLOUD, JOB, World

from tandemn.control import views
from tandemn.control.reconcilers import fleet
from tandemn.control.store import chunks, events, jobs, replicas
from tandemn.errors import QuotaExceeded
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobSpec, JobState, ReplicaConfig
from tandemn.protocol.replicas import Market

OTHER = "job-2"


@pytest.fixture
def world(tmp_path):
    """Ann's job wants four replicas and has begun; Bob's, which wants as many, comes later."""
    made = World(tmp_path, requests=100_000, deadline_s=1e6, rate=0.1, replicas_planned=4, on_demand=True)
    made.database.run_sync(jobs.change, JOB, owner="ann")
    try:
        yield made
    finally:
        made.close()


def submit_bobs(world):
    def add(connection):
        now = world.clock.now()
        spec = JobSpec(model="m", input_file_id="f", slo_s=1e6, cloud=CLOUD, on_demand=True)
        jobs.add(connection, job_id=OTHER, spec=spec, now=now, input_object="o", cloud=CLOUD, owner="bob")
        row = {"chunk": 10**6, "byte_start": 0, "byte_end": 1, "first_request": 0, "requests": 10}
        chunks.replace_all(connection, OTHER, [row])
        config = ReplicaConfig(gpu="L4", market=Market.ON_DEMAND).model_dump(mode="json")
        groups = [{"config": config, "wanted": 4, "fallbacks": []}]
        jobs.change(
            connection, OTHER, state=JobState.WAITING.value, requests=10, engine="vllm", groups=groups
        )

    world.database.run_sync(add)


async def tick(world):
    world.clock.advance(world.tick_s)
    world._work()
    await world.places.look()
    for job_id in (JOB, OTHER):
        try:
            job = world.database.run_sync(jobs.get, job_id)
        except LookupError:
            continue
        await fleet.step(world.services, job, world.places)


def running(world):
    live = world.database.run_sync(replicas.live)
    names = [each.job_id for each in live if each.launched_at is not None and each.orders == "go_on"]
    return {job_id: names.count(job_id) for job_id in (JOB, OTHER)}


def status(world, job_id):
    return world.database.run_sync(views.status, job_id, now=world.clock.now())


async def until(world, condition, ticks=60):
    for _ in range(ticks):
        if condition():
            return
        await tick(world)
    raise AssertionError(f"never: {running(world)}, {status(world, OTHER).waits}")


async def test_clusters_are_shared_with_who_comes_later(world):
    world.cloud.limit = 4
    submit_bobs(world)
    world.database.run_sync(jobs.change, OTHER, state=JobState.PLANNING.value)  # not yet
    await until(world, lambda: running(world) == {JOB: 4, OTHER: 0})
    world.database.run_sync(jobs.change, OTHER, state=JobState.WAITING.value)
    waits = []

    def is_shared():
        waits.append(status(world, OTHER).waits)
        assert len(world.cloud.alive()) <= 4
        return running(world) == {JOB: 2, OTHER: 2}

    await until(world, is_shared)
    assert any(each and (each.what, each.place_in_line, each.ahead) == ("clusters", 1, []) for each in waits)
    told = [
        each.data for each in world.database.run_sync(events.of_kinds, [EventKind.JOB_WAITS], job_id=OTHER)
    ]
    assert [each["what"] for each in told] == ["clusters"]
    ended = [each for each in world.database.run_sync(replicas.of_job, JOB) if each.state.has_ended]
    assert [each.state.value for each in ended] == ["completed", "completed"], "drained, not lost"


async def test_a_quota_that_is_used_up_is_shared(world):
    """The cloud gives four machines, whatever is asked: who comes later gets two of them, and keeps them."""
    launch = world.cloud.launch

    def refuse_the_fifth(spec):
        if len(world.cloud.alive()) >= 4:
            raise QuotaExceeded("the quota of L4 is used up")
        return launch(spec)

    world.cloud.launch = refuse_the_fifth
    submit_bobs(world)
    world.database.run_sync(jobs.change, OTHER, state=JobState.PLANNING.value)
    await until(world, lambda: running(world) == {JOB: 4, OTHER: 0})
    world.database.run_sync(jobs.change, OTHER, state=JobState.WAITING.value)
    said = set()

    def is_shared():
        for job_id in (JOB, OTHER):
            if waits := status(world, job_id).waits:
                said.add((job_id, waits.what))
        return running(world) == {JOB: 2, OTHER: 2}

    await until(world, is_shared)
    assert (OTHER, "quota") in said
    assert status(world, OTHER).state is not JobState.FAILED
    for _ in range(20):
        await tick(world)
        assert running(world)[JOB] == 2, "it does not go to and fro"

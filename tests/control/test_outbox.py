"""Callbacks from the transaction that causes them to Koi: all of them or none, in order, until taken or given up."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tandemn.clock import MockClock
from tandemn.control.courier import Courier
from tandemn.control.services import Pulse
from tandemn.control.store import events, jobs, outbox, replicas
from tandemn.errors import Broken
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobSpec, JobState, ReplicaConfig
from tandemn.protocol.plans import KoiAdvice
from tandemn.protocol.replicas import ReplicaState

KEEP_S = 3600.0
HEARTBEAT_S = 30.0


@pytest.fixture
def clock():
    return MockClock()


@pytest.fixture
def database(new_database):
    return new_database(tells_koi=True)


def add_job(connection, name, now, *, is_asked=True, replica_count=1, config=None):
    spec = JobSpec(model="m", slo_s=60, input_file_id="file-x")
    jobs.add(connection, job_id=name, spec=spec, now=now, input_object="files/x", cloud="local")
    advice = KoiAdvice(reason="followed", is_followed=True, decision_id="dec-1").model_dump(mode="json")
    jobs.change(connection, name, state=JobState.RUNNING.value, koi=advice if is_asked else None)
    ids = replicas.request(
        connection,
        name,
        group=0,
        config=config or ReplicaConfig(gpu="L4"),
        launcher="local",
        count=replica_count,
        now=now,
        reason="planned",
    )
    for replica_id in ids:
        state = ReplicaState.LAUNCHING.value
        replicas.change(connection, replica_id, state=state, launched_at=now)


def called(connection, replica_id, now):
    replicas.change(connection, replica_id, said_hello_at=now, state=ReplicaState.STARTING.value)
    job_id = replica_id.rpartition("-")[0]
    events.append(connection, EventKind.REPLICA_CALLED, now=now, job_id=job_id, replica_id=replica_id)


def ready(connection, replica_id, now):
    replicas.change(connection, replica_id, state=ReplicaState.RUNNING.value)
    job_id = replica_id.rpartition("-")[0]
    events.append(connection, EventKind.REPLICA_READY, now=now, job_id=job_id, replica_id=replica_id)


def ended(connection, name, now):
    jobs.move(connection, name, to=JobState.COMPLETED, frm=(JobState.RUNNING,), now=now)


def waiting(database):
    def read(connection):
        from sqlalchemy import select

        from tandemn.control.store.schema import outbox as table

        return connection.execute(select(table).order_by(table.c.seq)).all()

    return database.run_sync(read)


def ids(database):
    return [row.event_id for row in waiting(database)]


class FakeKoi:
    """Answers each callback with the status that the test says; the contract is held elsewhere."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.is_down = False
        self.refused_paths: set[str] = set()

    async def take(self, request: web.Request) -> web.Response:
        if self.is_down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.got.append(await request.json())
        return web.Response(status=422 if request.path in self.refused_paths else self.status)

    @property
    def ids(self):
        return [body["event_id"] for body in self.got]


@asynccontextmanager
async def delivering(database, clock):
    koi = FakeKoi()
    app = web.Application()
    app.router.add_post("/{path:.*}", koi.take)
    server = TestServer(app)
    await server.start_server()
    pulse = Pulse()
    courier = Courier(
        database,
        pulse,
        clock,
        url=str(server.make_url("")).rstrip("/"),
        timeout_s=5.0,
        keep_s=KEEP_S,
        heartbeat_s=HEARTBEAT_S,
    )
    task = asyncio.create_task(courier.run())
    try:
        yield SimpleNamespace(koi=koi, beat=lambda: pulse.beat("*"))
    finally:
        await courier.halt()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def test_what_is_told_is_written_with_what_it_tells_of(database, clock):
    def all_at_once(connection):
        add_job(connection, "job-a", clock.now())
        called(connection, "job-a-r0", clock.now())

    database.run_sync(all_at_once)
    assert ids(database) == ["job-a-r0:config_attempted", "job-a-r0:job_launching"]

    def and_fails(connection):
        ready(connection, "job-a-r0", clock.now())
        raise Broken("the transaction comes to nothing")

    with pytest.raises(Broken):
        database.run_sync(and_fails)
    assert len(ids(database)) == 2, "nothing happened, nothing is told"
    # The same fact, recorded again by a racing call, is one callback.
    database.run_sync(called, "job-a-r0", clock.now())
    assert len(ids(database)) == 2


def test_it_says_where_a_replica_has_landed_and_how_many_copies_it_runs(database, clock):
    def landed(connection):
        add_job(connection, "job-a", clock.now(), config=ReplicaConfig(gpu="L4", dp=4))
        handle = {"cluster": "c", "place": "aws/us-east-1/us-east-1a", "instance_type": "g6.12xlarge"}
        replicas.change(connection, "job-a-r0", handle=handle)
        called(connection, "job-a-r0", clock.now())
        ready(connection, "job-a-r0", clock.now())

    database.run_sync(landed)
    for row in waiting(database):
        body = json.loads(row.body)
        assert (body["region"], body["instance_type"], body["dp"]) == ("us-east-1", "g6.12xlarge", 4)


@pytest.mark.parametrize(("tells_koi", "is_asked"), [(False, True), (True, False)])
def test_nothing_is_written_without_koi_or_for_a_job_it_was_not_asked_about(
    new_database, clock, tells_koi, is_asked
):
    database = new_database(tells_koi=tells_koi)
    database.run_sync(add_job, "job-a", clock.now(), is_asked=is_asked)
    database.run_sync(called, "job-a-r0", clock.now())
    database.run_sync(ended, "job-a", clock.now())
    if tells_koi:
        database.run_sync(outbox.tell_of_launches, {}, now=clock.now() + 1000, every_s=1.0)
    assert ids(database) == []


async def test_each_jobs_callbacks_come_in_order_and_one_that_is_not_taken_holds_up_its_own_only(
    database, clock
):
    for name in ("job-a", "job-b"):
        await database.run(add_job, name, clock.now())
        for step in (called, ready):
            await database.run(step, f"{name}-r0", clock.now())
        await database.run(ended, name, clock.now())
    async with delivering(database, clock) as world:
        world.koi.status = 503
        await until(lambda: len(world.koi.got) >= 2)
        assert set(world.koi.ids) == {"job-a-r0:config_attempted", "job-b-r0:config_attempted"}
        first = world.koi.got[0]
        world.koi.status = 200
        clock.advance(60)
        world.beat()
        await until(lambda: not ids(database))
    for name in ("job-a", "job-b"):
        of_it = list(dict.fromkeys(each for each in world.koi.ids if each.startswith(name)))
        assert of_it == [
            f"{name}-r0:config_attempted",
            f"{name}-r0:job_launching",
            f"{name}-r0:job_started",
            f"{name}:job_complete",
        ]
    assert world.koi.got.count(first) >= 2, "the same words in every try"


async def test_koi_is_down_and_comes_back_what_waited_for_that_waits_no_longer(database, clock):
    for number in range(3):
        await database.run(add_job, f"job-{number}", clock.now())
        await database.run(called, f"job-{number}-r0", clock.now())
    async with delivering(database, clock) as world:
        world.koi.is_down = True
        await until(lambda: sum(row.tries for row in waiting(database)) == 3)
        assert all(row.fault for row in waiting(database) if row.tries)
        world.koi.is_down = False
        # Only this one is due: the clock stands still. That it is taken shows that Koi is back.
        await database.run(add_job, "job-9", clock.now())
        await database.run(called, "job-9-r0", clock.now())
        world.beat()
        await until(lambda: not ids(database))
    assert len(set(world.koi.ids)) == 8


async def test_what_koi_refuses_is_given_up_after_some_tries_and_the_rest_goes_on(database, clock):
    await database.run(add_job, "job-a", clock.now())
    for step in (called, ready):
        await database.run(step, "job-a-r0", clock.now())
    async with delivering(database, clock) as world:
        world.koi.refused_paths = {"/job/launching"}
        while ids(database):
            clock.advance(60)
            world.beat()
            await asyncio.sleep(0.05)
    assert world.koi.ids[-1] == "job-a-r0:job_started"
    assert world.koi.ids.count("job-a-r0:job_launching") == 8
    [dropped] = await database.run(events.of_kinds, [EventKind.KOI_CALLBACK_DROPPED])
    assert dropped.job_id == "job-a"
    assert (dropped.data["event_id"], dropped.data["tries"]) == ("job-a-r0:job_launching", 8)
    assert "422" in dropped.data["reason"]


async def test_what_is_too_old_is_given_up_with_those_behind_it_but_not_untried(database, clock):
    await database.run(add_job, "job-a", clock.now())
    for step in (called, ready):
        await database.run(step, "job-a-r0", clock.now())
    clock.advance(KEEP_S + 1)
    await database.run(ended, "job-a", clock.now())
    async with delivering(database, clock) as world:
        world.koi.status = 500
        await until(lambda: len(ids(database)) == 1)
        assert ids(database) == ["job-a:job_complete"], "what is younger is kept"
        assert world.koi.ids[0] == "job-a-r0:config_attempted"
        dropped = await database.run(events.of_kinds, [EventKind.KOI_CALLBACK_DROPPED])
        assert [each.data["event_id"] for each in dropped] == [
            "job-a-r0:config_attempted",
            "job-a-r0:job_launching",
            "job-a-r0:job_started",
        ]


async def test_a_launch_that_goes_on_is_told_now_and_then_and_piles_nothing_up(database, clock):
    await database.run(add_job, "job-a", clock.now(), replica_count=2)
    async with delivering(database, clock) as world:
        for number in range(1, 4):
            clock.advance(HEARTBEAT_S)
            world.beat()
            await until(lambda number=number: f"job-a-r1:launch_heartbeat:{number}" in world.koi.ids)
        world.koi.status = 503
        for _ in range(5):
            clock.advance(HEARTBEAT_S)
            world.beat()
            await asyncio.sleep(0.15)
        assert len(ids(database)) == 2, "one of each replica at most"
        await database.run(called, "job-a-r0", clock.now())
        await database.run(ready, "job-a-r0", clock.now())
        world.koi.status = 200
        clock.advance(HEARTBEAT_S)
        world.beat()
        await until(lambda: not any("r0" in each for each in ids(database)))
    assert len(set(world.koi.ids)) == len({json.dumps(each, sort_keys=True) for each in world.koi.got})
    assert world.koi.ids.index("job-a-r0:launch_heartbeat:3") < world.koi.ids.index("job-a-r0:job_started")
    late = [each for each in world.koi.ids if each.startswith("job-a-r0:launch_heartbeat")]
    assert world.koi.ids.index(late[-1]) < world.koi.ids.index("job-a-r0:job_started")

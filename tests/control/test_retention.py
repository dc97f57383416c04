"""Files go when they are deleted or their time is over, and nothing of them stays; never of an unfinished job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.control.plane import served

from tandemn.clock import MockClock
from tandemn.control import names
from tandemn.control.reconcilers.retention import LEFT_OVER_S, sweep
from tandemn.control.retention import DAY_S, expires_at, kept_since
from tandemn.control.store import events, files, jobs, replicas
from tandemn.control.store.records import FileRecord
from tandemn.fleet.launchers.skypilot import log_path
from tandemn.protocol.jobs import JobState, ReplicaConfig


@pytest.fixture
async def plane(tmp_path):
    async with served(tmp_path, retention_days=30.0) as plane:
        yield plane


async def stored(plane):
    return {name async for name, _ in plane.services.objects.list()}


def later(plane, days):
    """The same services, so many days on."""
    return replace(plane.services, clock=MockClock(plane.services.clock.now() + days * DAY_S))


async def uploaded(plane, **fields):
    status, file = await plane.call("POST", "/v1/files", data={"purpose": "batch", "file": b"{}\n", **fields})
    assert status == 200, file
    return file


def test_the_sooner_of_what_was_asked_and_what_the_server_keeps():
    assert expires_at(100.0, None, None) is None
    assert expires_at(100.0, 500.0, None) == 500.0
    assert expires_at(100.0, None, 1.0) == 100.0 + DAY_S
    assert expires_at(100.0, 500.0, 1.0) == 500.0
    assert expires_at(100.0, 100.0 + 2 * DAY_S, 1.0) == 100.0 + DAY_S
    assert kept_since(DAY_S, None) is None
    assert kept_since(2 * DAY_S, 1.0) == DAY_S


async def test_a_file_expires_as_it_says(plane):
    file = await uploaded(plane)
    assert file["expires_at"] == pytest.approx(file["created_at"] + 30 * DAY_S, abs=2)
    assert await sweep(later(plane, 29.9)) == 0
    assert (await plane.call("GET", f"/v1/files/{file['id']}"))[0] == 200
    assert await sweep(later(plane, 30.1)) == 1
    assert (await plane.call("GET", f"/v1/files/{file['id']}"))[0] == 404
    assert await stored(plane) == set()
    logged = await plane.services.database.run(events.page, after=0, limit=9)
    assert [(each.kind, each.actor, each.data.get("reason")) for each in logged] == [
        ("file_added", "local", None),
        ("file_deleted", None, "expired"),
    ]


async def test_an_owner_may_ask_for_less(plane):
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = await uploaded(plane, **fields)
    assert file["expires_at"] == pytest.approx(file["created_at"] + 3600, abs=2)
    assert await sweep(later(plane, 0.1)) == 1
    for seconds in ("0", "-1", "x", "1e3", "9" * 30):
        status, _ = await plane.call(
            "POST",
            "/v1/files",
            data={"purpose": "batch", "file": b"{}\n", **fields, "expires_after[seconds]": seconds},
        )
        assert status == 400
    assert await stored(plane) == set()


async def test_what_an_unfinished_job_reads_stays(plane):
    job_id = await plane.new_job("local")
    input_object = (await plane.services.database.run(jobs.get, job_id)).input_object
    assert await sweep(later(plane, 400)) == 0
    assert input_object in await stored(plane)
    await plane.services.database.run(
        jobs.change, job_id, state=JobState.FAILED.value, ended_at=plane.services.clock.now()
    )
    assert await sweep(later(plane, 400)) == 2
    assert await stored(plane) == set()


async def test_what_is_left_of_an_ended_job_goes(plane):
    job_id = await plane.new_job("local")
    chunk = names.chunk_object(job_id, 0, "1-1")
    await plane.services.objects.put(chunk, b"{}\n")
    now = plane.services.clock.now()
    await plane.services.database.run(jobs.change, job_id, state=JobState.FAILED.value, ended_at=now)
    [replica_id] = await plane.services.database.run(
        replicas.request,
        job_id,
        group=0,
        config=ReplicaConfig(gpu="L4"),
        launcher="aws",
        count=1,
        now=now,
        reason="test",
    )
    log = log_path(plane.services.settings.home_path, replica_id)
    log.parent.mkdir(parents=True)
    log.write_text("what users may have asked\n")
    await sweep(later(plane, 29))
    assert chunk in await stored(plane)
    assert log.exists()
    await sweep(later(plane, 31))
    assert await stored(plane) == set()
    assert not log.exists()
    status, answer = await plane.call("GET", f"/api/jobs/{job_id}/output?partial=true")
    assert (status, answer["error"]["code"]) == (404, "output_deleted")
    assert await sweep(later(plane, 32)) == 0
    assert (await plane.call("GET", f"/api/jobs/{job_id}"))[0] == 200


async def test_an_output_that_was_deleted_is_said_to_be(plane):
    job_id = await plane.new_job("local")
    file_id = await plane.new_file("local")
    await plane.services.database.run(
        jobs.change,
        job_id,
        state=JobState.COMPLETED.value,
        ended_at=plane.services.clock.now(),
        output_file_id=file_id,
    )
    assert (await plane.call("GET", f"/api/jobs/{job_id}/output"))[1] == b"{}\n"
    assert (await plane.call("DELETE", f"/v1/files/{file_id}"))[0] == 200
    status, answer = await plane.call("GET", f"/api/jobs/{job_id}/output")
    assert (status, answer["error"]["code"]) == (404, "output_deleted")


async def test_what_a_crash_left_goes_after_a_day(plane):
    """As if the process had died while it took a file in, and while it removed another."""
    now = plane.services.clock.now()
    half = FileRecord(
        file_id="file-half", filename="", purpose="", bytes=0, object="files/file-half", created_at=now,
        job_id=None, owner="local",
    )  # fmt: skip
    await plane.services.database.run(files.reserve, half)
    await plane.services.objects.put(half.object, b"x")
    gone = await plane.new_file("local")
    await plane.services.database.run(files.hide, gone, now=now, actor=None, reason="expired")
    _, listed = await plane.call("GET", "/v1/files")
    assert listed["data"] == []
    assert await sweep(later(plane, 0.5 * LEFT_OVER_S / DAY_S)) == 0
    assert await sweep(later(plane, 1.1 * LEFT_OVER_S / DAY_S)) == 2
    assert await stored(plane) == set()
    assert await sweep(later(plane, 1.2 * LEFT_OVER_S / DAY_S)) == 0


async def test_nothing_expires_where_nothing_is_said(tmp_path):
    async with served(tmp_path) as plane:
        file = await uploaded(plane)
        assert file["expires_at"] is None
        assert await sweep(later(plane, 36_000)) == 0
        assert await plane.services.objects.exists(f"files/{file['id']}")

"""A job that is cancelled before it has chunks ends as cancelled, and nothing of it stays, whatever step it is in."""

from __future__ import annotations

import pytest
from tests.control.plane import served
from tests.process.house import chat_lines

from tandemn.control import submission
from tandemn.control.reconcilers import preparation, supervisor
from tandemn.control.reconcilers.sharing import Places
from tandemn.control.store import jobs
from tandemn.protocol.jobs import JobState


@pytest.fixture
async def plane(tmp_path):
    async with served(tmp_path) as plane:
        yield plane


async def submitted(plane):
    lines = chat_lines(3, model="demo/tiny").encode()
    status, file = await plane.call("POST", "/v1/files", data={"purpose": "batch", "file": lines})
    assert status == 200, file
    job_id = await plane.new_job("local", JobState.VALIDATING)
    return await changed(plane, job_id, input_object=f"files/{file['id']}")


async def changed(plane, job_id, **values):
    if values:
        await plane.services.database.run(jobs.change, job_id, **values)
    return await plane.services.database.run(jobs.get, job_id)


async def assert_it_ends(plane, job_id):
    places = Places(plane.services)
    for _ in range(9):
        await supervisor.step(plane.services, job_id, places)
    job = await changed(plane, job_id)
    assert (job.state, job.output_file_id, job.error_file_id) == (JobState.CANCELLED, None, None), job.reason
    assert [name async for name, _ in plane.services.objects.list("jobs/")] == []


async def test_before_it_was_read(plane):
    job = await submitted(plane)
    await submission.request_cancel(plane.services, job.job_id, actor="test")
    await assert_it_ends(plane, job.job_id)


async def test_while_it_was_read(plane):
    job = await submitted(plane)
    await submission.request_cancel(plane.services, job.job_id, actor="test")
    assert not await preparation.validate(plane.services, job)
    assert [name async for name, _ in plane.services.objects.list("jobs/")] != []
    await assert_it_ends(plane, job.job_id)


async def test_while_it_was_planned(plane):
    job = await submitted(plane)
    assert await preparation.validate(plane.services, job)
    planning = await changed(plane, job.job_id)
    assert planning.state is JobState.PLANNING
    await submission.request_cancel(plane.services, job.job_id, actor="test")
    assert not await preparation.plan(plane.services, planning)
    await assert_it_ends(plane, job.job_id)

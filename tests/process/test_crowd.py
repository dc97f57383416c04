"""Several users' jobs at once on few slots; `make crowd` is the same with 20 jobs of 1,000 requests."""

from __future__ import annotations

import json

from tests.process import watch
from tests.process.conftest import built
from tests.process.crowd import Plan, run_crowd, started
from tests.process.house import chat_lines

from tandemn.client import UserClient
from tandemn.protocol.jobs import JobSpec, JobState
from tandemn.protocol.keys import CreateKey, Role


async def test_all_complete_and_none_waits_much_longer_than_the_others():
    plan = Plan()
    with built(TANDEMN_LOCAL_SLOTS=str(plan.slots)) as house:
        figures = await run_crowd(house, plan)
    assert figures.completed == plan.jobs
    assert figures.replicas_at_once == plan.slots, "never more than there are slots, and none left empty"
    assert figures.max_over_mean <= 2
    assert figures.waits_seen >= plan.jobs - plan.users - plan.slots, "who waits says so"
    assert figures.recomputed == 0


async def test_who_comes_later_gets_its_share_and_one_jobs_failure_is_no_others(tmp_path):
    """Ann has both slots. Bob's job takes one while hers goes on, and her other one, that fails, disturbs neither."""
    with built(TANDEMN_LOCAL_SLOTS="2", TANDEMN_PACE_S="1") as house:
        admin_key = house.run("keys", "create", "ops", "--role", "admin").stdout.strip()
        url = started(house)
        (tmp_path / "long").write_text(chat_lines(800))
        (tmp_path / "short").write_text(chat_lines(20))

        async def submit(user: UserClient, name: str, *engine_args: str, **spec: object) -> str:
            file = await user.upload(tmp_path / name)
            body = {"model": "any/model", "slo_s": 3600, "cloud": "local", "engine": "simulated", **spec}
            made = JobSpec.model_validate(
                {**body, "input_file_id": file.id, "engine_args": list(engine_args)}
            )
            return (await user.submit(made)).job_id

        async def ended(user: UserClient, job_id: str) -> JobState:
            status = await user.job(job_id)
            while not status.state.has_ended:
                status = await user.job(job_id, wait_s=5.0, state=status.state)
            return status.state

        async with UserClient(url, admin_key) as ops:
            keys = [
                (await ops.create_key(CreateKey(name=name, role=Role.USER))).key for name in ("ann", "bob")
            ]
            async with UserClient(url, keys[0]) as ann, UserClient(url, keys[1]) as bob:
                slow = ("--slots", "4", "--decode-step-s", "0.02")
                first = await submit(ann, "long", *slow, replicas=2, chunk_size=20)
                house.wait_for(lambda: len(watch.computing(house, first)) == 2)
                second = await submit(bob, "short", *slow)
                broken = await submit(ann, "short", "--fail-load", replicas=1)
                assert await ended(bob, second) is JobState.COMPLETED
                still = await ann.job(first)
                assert not still.state.has_ended, "Bob did not wait for the end of Ann's job"
                assert await ended(ann, first) is JobState.COMPLETED
                status = await ann.job(first)
                assert (status.requests.completed, status.requests.recomputed) == (800, 0)
                assert await ended(ann, broken) is JobState.FAILED
                events = [each for each in (await ann.events(first)).events if each.kind == "replica_ordered"]
                assert "another owner" in events[0].data["reason"]
                assert second not in json.dumps([each.data for each in events])

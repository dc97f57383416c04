"""What a replica reports of its engine's deaths."""

from __future__ import annotations

from tests.control.plane import served

from tandemn.protocol.keys import Role


async def test_a_death_that_is_reported_again_is_one_event(tmp_path):
    async with served(tmp_path) as plane:
        await plane.new_key("alice", Role.ADMIN)
        job_id = await plane.new_job("alice")
        replica_id, key = await plane.new_replica(job_id)
        path = f"/api/replicas/{replica_id}/engine-death"
        for death, strikes in (("a", 1), ("a", 1), ("b", 2)):
            report = {"death_id": death, "in_flight": {"0": [7]}, "reason": "exit status 139"}
            status, answer = await plane.call("POST", path, key=key, json=report)
            assert (status, answer) == (200, {"strikes": {"0": {"7": strikes}}})
        _, found = await plane.call("GET", f"/api/jobs/{job_id}/events", key=plane.keys["alice"])
        told = [event for event in found["events"] if event["kind"] == "engine_died"]
        assert len(told) == 2

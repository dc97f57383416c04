"""Figures from a heartbeat to `tandemn metrics` and to Prometheus: whose, how many, and for how long."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from tests.control.plane import Plane, served

from tandemn.control import metrics, series
from tandemn.control.exposition import JobFigures, Page, ReplicaFigures, exposition
from tandemn.control.reconcilers.retention import sweep
from tandemn.control.retention import DAY_S
from tandemn.control.store import jobs, replicas
from tandemn.protocol.jobs import JobState
from tandemn.protocol.keys import Role
from tandemn.protocol.replicas import Heartbeat, ReplicaState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SAMPLE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"\\\n]*")(,[a-z_]+="[^"\\\n]*")*\})? -?[0-9.e+]+')


def beat(**fields: Any) -> dict[str, Any]:
    return {
        "state": "running",
        "requests_done": 4,
        "output_tokens": 64,
        "engine": {"running": 3, "waiting": 2, "kv_cache_use": 0.25, "generated_tokens": 70, "ttft_s": 0.5},
        "machine": {
            "cpu_use": 0.5,
            "memory_used_bytes": 100,
            "memory_total_bytes": 400,
            "gpus": [{"use": 0.75, "memory_used_bytes": 7, "memory_total_bytes": 8}, {}],
        },
        **fields,
    }


@pytest_asyncio.fixture
async def plane(tmp_path) -> AsyncIterator[Plane]:
    async with served(tmp_path, heartbeat_s=0.01) as plane:
        for name, role in (("root", Role.ADMIN), ("prometheus", Role.VIEWER), ("alice", Role.USER)):
            await plane.new_key(name, role)
        await plane.new_key("bob", Role.USER)
        yield plane


async def told(plane: Plane, job_id: str, token: tuple[str, str], **fields: Any) -> None:
    replica_id, key = token
    path = f"/api/replicas/{replica_id}/heartbeat"
    status, answer = await plane.call("POST", path, key=key, json=beat(**fields))
    assert status == 200, answer


async def read(plane: Plane, path: str, who: str) -> Any:
    status, answer = await plane.call("GET", path, key=plane.keys[who])
    assert status == 200, answer
    return answer


async def lines(plane: Plane, who: str) -> list[str]:
    text = (await read(plane, "/metrics", who)).decode()
    found = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in found if not _SAMPLE.fullmatch(line)] == []
    return found


async def test_what_a_replica_says_is_told(plane):
    job_id = await plane.new_job("alice")
    replica = await plane.new_replica(job_id)
    await told(plane, job_id, replica)
    found = await read(plane, f"/api/jobs/{job_id}/metrics", "alice")
    assert (found["state"], found["engine"], found["series"]) == ("running", "llamacpp", None)
    [shown] = found["replicas"]
    assert shown["replica_id"] == replica[0]
    assert (shown["engine"]["running"], shown["engine"]["kv_cache_use"]) == (3, 0.25)
    assert shown["machine"]["gpus"][0] == {"use": 0.75, "memory_used_bytes": 7, "memory_total_bytes": 8}

    page = await lines(plane, "prometheus")
    labels = f'{{job_id="{job_id}",replica_id="{replica[0]}"}}'
    assert f"tandemn_engine_running_requests{labels} 3" in page
    assert f"tandemn_engine_waiting_requests{labels} 2" in page
    assert f"tandemn_engine_kv_cache_use_ratio{labels} 0.25" in page
    assert f"tandemn_engine_ttft_mean_seconds{labels} 0.5" in page
    assert f"tandemn_replica_requests_total{labels} 4" in page
    assert f"tandemn_machine_cpu_use_ratio{labels} 0.5" in page
    assert f'tandemn_gpu_use_ratio{labels[:-1]},gpu="0"}} 0.75' in page
    assert f'tandemn_job_replicas{{job_id="{job_id}",state="running"}} 1' in page
    assert 'tandemn_jobs{state="running"} 1' in page
    assert not any(line.startswith("tandemn_engine_tpot_mean_seconds") for line in page), "it was not told"
    assert not any(line.startswith("tandemn_koi") for line in page), "there is no Koi"


async def test_each_sees_its_own(plane):
    job_id = await plane.new_job("alice")
    replica = await plane.new_replica(job_id)
    await told(plane, job_id, replica)
    await plane.new_deployment("alice")
    for who, sees in (("alice", True), ("prometheus", True), ("root", True), ("bob", False)):
        page = await lines(plane, who)
        assert any(job_id in line for line in page) is sees, who
        assert ('tandemn_deployments{state="planned"} 1' in page) is sees, who
    status, answer = await plane.call("GET", f"/api/jobs/{job_id}/metrics", key=plane.keys["bob"])
    assert (status, answer["error"]["code"]) == (404, "job_not_found")
    status, _ = await plane.call("GET", "/metrics")
    assert status == 401


async def test_what_has_ended_leaves_the_page_and_keeps_its_series(plane):
    job_id = await plane.new_job("alice")
    replica = await plane.new_replica(job_id)
    for done in (1, 5, 9):
        await told(plane, job_id, replica, requests_done=done, output_tokens=done * 10)
        await settle(plane, replica[0])
    run, now = plane.services.database.run, plane.services.clock.now()
    await run(replicas.change, replica[0], state=ReplicaState.COMPLETED.value, ended_at=now)
    assert (await read(plane, f"/api/jobs/{job_id}/metrics", "alice"))["replicas"] == []
    await run(jobs.change, job_id, state=JobState.COMPLETED.value, ended_at=now)
    assert not any(job_id in line for line in await lines(plane, "root"))

    found = await read(plane, f"/api/jobs/{job_id}/metrics?series=true", "alice")
    [kept] = found["series"]
    assert [point["requests_done"] for point in kept["points"]] == [1, 5, 9]
    assert kept["points"][0]["tokens_per_s"] is None
    assert all(point["tokens_per_s"] > 0 for point in kept["points"][1:])
    [last] = found["replicas"]
    assert (last["state"], last["requests_per_s"], last["requests_done"]) == ("completed", None, 9)

    just_kept = now - (series.KEPT_DAYS - 1) * DAY_S
    await run(jobs.change, job_id, ended_at=just_kept)
    await sweep(plane.services)
    assert (await read(plane, f"/api/jobs/{job_id}/metrics?series=true", "alice"))["series"][0]["points"]
    await run(jobs.change, job_id, ended_at=just_kept - 2 * DAY_S)
    assert await sweep(plane.services) == 1
    assert (await read(plane, f"/api/jobs/{job_id}/metrics?series=true", "alice"))["series"][0][
        "points"
    ] == []


async def settle(plane: Plane, replica_id: str) -> None:
    """Let the next heartbeat be one heartbeat later, by the record of the last."""
    run = plane.services.database.run
    seen = (await run(replicas.get, replica_id)).last_seen
    assert seen is not None
    while plane.services.clock.now() < seen + 0.011:
        pass


async def test_one_replica_by_its_short_name_and_one_that_is_not_there(plane):
    job_id = await plane.new_job("alice")
    await plane.new_replica(job_id)
    second = await plane.new_replica(job_id)
    found = await read(plane, f"/api/jobs/{job_id}/metrics?replica=r1", "alice")
    assert [each["replica_id"] for each in found["replicas"]] == [second[0]]
    status, answer = await plane.call(
        "GET", f"/api/jobs/{job_id}/metrics?replica=r7", key=plane.keys["alice"]
    )
    assert (status, answer["error"]["code"]) == (404, "replica_not_found")


async def test_the_page_is_bounded(plane, monkeypatch):
    monkeypatch.setattr(metrics, "JOBS_ON_PAGE", 2)
    monkeypatch.setattr(metrics, "REPLICAS_ON_PAGE", 3)
    for _ in range(4):
        job_id = await plane.new_job("alice")
        for _ in range(2):
            await told(plane, job_id, await plane.new_replica(job_id))
    page = await lines(plane, "prometheus")
    assert len([line for line in page if line.startswith("tandemn_job_deadline")]) == 2
    assert len([line for line in page if line.startswith("tandemn_replica_requests_total")]) == 3
    assert 'tandemn_left_out{kind="jobs"} 2' in page
    assert 'tandemn_left_out{kind="replicas"} 5' in page
    assert 'tandemn_jobs{state="running"} 4' in page, "all are counted"


def test_every_family_is_introduced_once_and_labels_are_escaped():
    job = JobFigures(job_id='j"\n\\', completed=1, failed=0, left=2, deadline=50.0, replica_states=[])
    replica = ReplicaFigures(
        job_id="j", replica_id="j-r0", seen_at=90.0, beat=Heartbeat.model_validate(beat())
    )
    page = Page(
        version="1",
        is_leading=True,
        now=100.0,
        job_states=[JobState.RUNNING],
        deployment_states=[],
        jobs=[job],
        replicas=[replica, replica],
        jobs_left_out=0,
        replicas_left_out=0,
        repeated_transactions=7,
        callbacks_waiting=3,
    )
    text = exposition(page).decode()
    introduced = re.findall(r"^# TYPE (\w+) (gauge|counter)$", text, re.MULTILINE)
    names = [name for name, _ in introduced]
    assert len(names) == len(set(names))
    used = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert used <= set(names)
    assert all(name.endswith("_total") for name, kind in introduced if kind == "counter")
    assert 'tandemn_job_requests{job_id="j\\"\\n\\\\",state="left"} 2' in text
    assert 'tandemn_job_deadline_left_seconds{job_id="j\\"\\n\\\\"} -50' in text
    assert 'tandemn_replica_silent_seconds{job_id="j",replica_id="j-r0"} 10' in text
    assert "tandemn_koi_callbacks_waiting 3" in text
    assert "tandemn_database_repeated_total 7" in text

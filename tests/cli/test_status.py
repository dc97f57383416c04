import time

from tests.fakes.user_api import completed, job_status

REPLICAS = [
    {
        "replica_id": "r0",
        "state": "running",
        "gpu": "cpu",
        "market": "spot",
        "pid": 4242,
        "requests_per_s": 12.34,
    },
    {"replica_id": "r1", "state": "preempted", "gpu": "cpu", "market": "spot", "reason": "[notice] gone"},
]


def test_status_json_is_what_the_control_plane_said(plane, tandemn):
    status = job_status(replicas=REPLICAS, requests={"total": 10, "completed": 4}, cost_usd="0.1", eta_s=12.0)
    plane.jobs["job-1"] = [status]
    shown = tandemn("status", "job-1", "--json").json
    assert shown["job_id"] == "job-1"
    assert shown["state"] == "running"
    assert shown["requests"] == {"total": 10, "completed": 4, "failed": 0, "recomputed": 0}
    assert shown["chunks"] == {"total": 0, "pending": 0, "leased": 0, "completed": 0, "failed": 0}
    assert shown["replicas"][0]["pid"] == 4242
    assert {"replica_id", "state", "gpu", "market", "region"} <= set(shown["replicas"][0])
    assert shown["cost_usd"] == 0.1
    assert shown["eta_s"] == 12.0
    assert shown["deadline"] == status.deadline
    assert shown["reason"] is None


def test_status_for_people(plane, tandemn):
    plane.jobs["job-1"] = [
        job_status(
            replicas=REPLICAS,
            requests={"total": 1000, "completed": 400, "failed": 1},
            reason="waits for [spot] capacity",
            code="no_capacity",
            requests_per_s=12.5,
            tokens_per_s=1234.0,
            eta_s=60.0,
            swap={
                "state": "launching",
                "reason": "x",
                "new": ["r2"],
                "old": ["r0"],
                "ready": 0,
                "threshold": 1,
            },
        )
    ]
    out = tandemn("status", "job").out
    assert "state     running: waits for [spot] capacity [no_capacity]\n" in out
    assert "requests  400 completed, 1 failed of 1,000\n" in out
    assert "pace      12.5 requests/s, 1,234 tokens/s\n" in out
    assert "ends in 1m (59m" in out
    assert "before the deadline)" in out
    assert "swap launching: 0 of 1 new replicas at work" in out
    assert "cost      unknown" in out
    assert "[notice] gone" in out
    assert "4242" in out


def test_failed_job_says_why(plane, tandemn):
    plane.jobs["job-1"] = [
        completed(state="failed", reason="no model demo/huge; name one that exists", code="model_not_found")
    ]
    result = tandemn("status", "job-1")
    assert result.code == 0
    assert "failed: no model demo/huge; name one that exists [model_not_found]" in result.out


def test_list(plane, tandemn):
    assert tandemn("list").out == "no jobs and no deployments\n"
    plane.jobs["job-1"] = [completed("job-1")]
    plane.jobs["job-2"] = [job_status("job-2", requests={"total": 200, "completed": 50})]
    plane.jobs["job-3"] = [job_status("job-3", deadline=time.time() - 60, is_late=True)]
    out = tandemn("list").out.splitlines()
    assert out[0].split() == [
        "JOB",
        "STATE",
        "MODEL",
        "REQUESTS",
        "CREATED",
        "DEADLINE",
        "PRIORITY",
        "REASON",
    ]
    assert [line.split()[0] for line in out[1:]] == ["job-3", "job-2", "job-1"]
    assert "50/200 (25.0%)" in out[2]
    assert out[1].endswith("late      normal")
    assert [row["job_id"] for row in tandemn("list", "--state", "active", "--json").json["jobs"]] == [
        "job-3",
        "job-2",
    ]
    assert tandemn("list", "--state", "expired").out == "none that are expired\n"


def test_a_waiting_job_says_what_for_and_who_is_ahead(plane, tandemn):
    waits = {
        "what": "slots",
        "reason": "waits for 2 of 16 slots",
        "replicas_wanted": 2,
        "place_in_line": 4,
        "ahead": ["job-7"],
        "ahead_of_others": 2,
    }
    plane.jobs["job-1"] = [job_status("job-1", state="waiting", priority="low", waits=waits)]
    said = "waits for 2 of 16 slots; number 4 in line, behind job-7, 2 jobs of other owners"
    assert f"waits     {said}" in tandemn("status", "job-1").out
    assert "priority  low" in tandemn("status", "job-1").out
    assert tandemn("list").out.splitlines()[1].endswith(f"low       {said}")
    assert tandemn("status", "job-1", "--json").json["waits"] == waits


def test_list_reads_every_page_up_to_its_limit(plane, tandemn):
    plane.jobs = {f"job-{number}": [job_status(f"job-{number}")] for number in range(250)}
    everything = tandemn("list", "--limit", "1000", "--json").json
    assert [row["job_id"] for row in everything["jobs"]] == [
        f"job-{number}" for number in reversed(range(250))
    ]
    assert everything["next_after"] is None
    some = tandemn("list", "--limit", "120", "--json").json
    assert len(some["jobs"]) == 120
    assert some["next_after"] is not None

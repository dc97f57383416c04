"""What Koi is told of which event, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fakes.koi_service import Contract

from tandemn.events import EventKind
from tandemn.koi.callbacks import KINDS, ToldJob, ToldReplica, heartbeat, of_job_end, of_replica_event, pulses
from tandemn.protocol.plans import KoiAdvice
from tandemn.protocol.replicas import Market, ReasonCode

NOW = 1000.0
ADVICE = KoiAdvice(
    is_feasible=True,
    is_followed=True,
    reason="followed",
    decision_id="dec-1",
    gpu="L4",
    tp=1,
    pp=1,
    predicted_tokens_per_s=1200.0,
    expected_tokens=5000,
)
JOB = ToldJob(
    job_id="job-1",
    advice=ADVICE,
    deadline=NOW + 7200,
    created_at=NOW - 3600,
    started_at=NOW - 1800,
    requests=10,
    completed=9,
    failed=1,
    prompt_tokens=600,
    output_tokens=300,
)
CONTRACT = Contract()


def replica(number=0, **fields):
    values: dict[str, Any] = {
        "replica_id": f"job-1-r{number}",
        "gpu": "L4",
        "tp": 1,
        "pp": 1,
        "market": Market.SPOT,
        "launched_at": NOW - 90,
        "was_called": True,
    }
    return ToldReplica(**(values | fields))


def sent(callbacks):
    """As they are sent; each is as the contract says."""
    bodies = []
    for callback in callbacks:
        body = json.loads(callback.body.model_dump_json(exclude_none=True))
        assert CONTRACT.faults(callback.path, body) == []
        assert callback.job_id == body["correlation_id"] == "job-1"
        bodies.append((callback.path, body))
    return bodies


def told(kind, *, of=None, job=JOB, **data):
    return sent(of_replica_event(kind, data, job, of or replica(), NOW))


def test_its_machine_is_there():
    (first, attempted), (second, launching) = told(EventKind.REPLICA_CALLED)
    assert (first, second) == ("/job/config-attempted", "/job/launching")
    assert (attempted["launched"], attempted["time_to_launch"]) == (True, 90.0)
    assert (attempted["job_id"], launching["job_id"], launching["group_id"]) == ("job-1", "job-1-r0", "job-1")
    assert {attempted["event_id"], launching["event_id"]} == {
        "job-1-r0:config_attempted",
        "job-1-r0:job_launching",
    }
    assert attempted["decision_id"] == launching["decision_id"] == "dec-1"


def test_a_machine_of_a_cloud_is_told_as_it_is():
    of = replica(dp=4, region="us-east-1", instance_type="g6.12xlarge")
    bodies = [
        body for _, body in told(EventKind.REPLICA_CALLED, of=of) + told(EventKind.REPLICA_READY, of=of)
    ]
    assert len(bodies) == 3
    for body in bodies:
        assert (body["tp"], body["pp"], body["dp"]) == (1, 1, 4)
        assert (body["instance_type"], body["region"]) == ("g6.12xlarge", "us-east-1")


def test_its_engine_answers():
    [(path, body)] = told(EventKind.REPLICA_READY)
    assert path == "/job/started"
    assert (body["slo_deadline_hours"], body["total_tokens"], body["predicted_tps"]) == (2.0, 5000, 1200.0)
    assert body["is_fallback"] is False
    [(_, other)] = told(EventKind.REPLICA_READY, of=replica(gpu="L40S", market=Market.ON_DEMAND))
    assert (other["is_fallback"], other["market"]) == (True, "on_demand")


def test_a_job_that_follows_no_recommendation_names_none():
    job = ToldJob(
        job_id="job-1", advice=KoiAdvice(reason="no", decision_id="dec-1"), deadline=NOW, created_at=0
    )
    [(_, body)] = told(EventKind.REPLICA_READY, job=job)
    assert "decision_id" not in body
    assert (body["predicted_tps"], body["is_fallback"]) == (0.0, False)


@pytest.mark.parametrize(
    ("state", "code", "of", "path"),
    [
        ("preempted", "spot_preemption", {}, "/job/replica-failed"),
        ("failed", "heartbeat_timeout", {}, "/job/replica-failed"),
        ("killed", "killed", {}, "/job/replica-failed"),
        # It never came to be: an attempt that failed, whatever of.
        ("failed", "launch_capacity_exhausted", {"was_called": False}, "/job/config-attempted"),
        ("preempted", "spot_preemption", {"was_called": False}, "/job/config-attempted"),
        # Nothing that failed.
        ("completed", None, {}, None),
        ("swapped_out", None, {}, None),
        ("killed", "killed", {"was_called": False}, None),
        ("killed", "killed", {"was_called": False, "launched_at": None}, None),
    ],
)
def test_it_ended(state, code, of, path):
    found = told(
        EventKind.REPLICA_ENDED,
        of=replica(**of),
        state=state,
        reason_code=code,
        reason="gone\nwithout notice",
    )
    assert [each for each, _ in found] == ([path] if path else [])
    for _, body in found:
        if path == "/job/replica-failed":
            assert (body["status"], body["reason_code"]) == (state, code)
            assert body["reason"] == "gone without notice"
        else:
            assert body["launched"] is False
            assert body["failure_reason"]


def test_the_job_ended():
    [(path, body)] = sent(of_job_end({"state": "completed", "reason": None}, JOB, [replica()], NOW))
    assert path == "/job/complete"
    assert body["status"] == "succeeded"
    assert body["metrics"] == {
        "requests_total": 10,
        "requests_completed": 9,
        "requests_failed": 1,
        "prompt_tokens": 600,
        "output_tokens": 300,
        "elapsed_hours": 1.0,
        "throughput_tokens_per_sec": 0.5,
    }
    for state in ("failed", "cancelled", "expired", "over_budget"):
        [(_, body)] = sent(of_job_end({"state": state, "reason": "so"}, JOB, [replica()], NOW))
        assert (body["status"], body["reason_detail"]) == (state, "so")


def test_the_job_ended_for_nothing_could_be_launched():
    never = [
        replica(
            number,
            was_called=False,
            launched_at=NOW - 100 + number,
            reason=f"no room {number}",
            reason_code=ReasonCode.LAUNCH_CAPACITY_EXHAUSTED,
        )
        for number in range(150)
    ]
    (path, body), (last, _) = sent(of_job_end({"state": "failed", "reason": "given up"}, JOB, never, NOW))
    assert (path, last) == ("/job/launch-failed", "/job/complete")
    assert len(body["configs_tried"]) == len(body["failure_reasons"]) == 100
    assert body["failure_reasons"][-1] == "no room 149"
    assert (body["reason_code"], body["total_time_seconds"]) == ("launch_capacity_exhausted", 100.0)
    assert len(of_job_end({"state": "failed"}, JOB, [*never, replica(200)], NOW)) == 1
    assert len(of_job_end({"state": "cancelled"}, JOB, never, NOW)) == 1


def test_a_launch_that_goes_on_is_told_at_set_times():
    assert [pulses(NOW, now=NOW + after, every_s=30.0) for after in (-5, 0, 29, 30, 59, 95)] == [
        0,
        0,
        0,
        1,
        1,
        3,
    ]
    assert pulses(None, now=NOW, every_s=30.0) == 0
    first, again = (
        heartbeat(JOB, replica(was_called=called), 2, every_s=30.0, note="loading the model")
        for called in (False, False)
    )
    [(path, body)] = sent([first])
    assert first == again
    assert path == "/job/launch-heartbeat"
    assert (body["event_id"], body["emitted_at"], body["phase"]) == (
        "job-1-r0:launch_heartbeat:2",
        NOW - 30,
        "launching",
    )
    [(_, body)] = sent([heartbeat(JOB, replica(), 2, every_s=30.0, note=None)])
    assert (body["phase"], body["message"]) == ("starting", "")


def test_every_kind_that_is_looked_at_tells_something():
    data = {"state": "failed", "reason_code": "unknown", "reason": "so"}
    for kind in KINDS - {EventKind.JOB_ENDED}:
        assert told(kind, **data)
    assert told(EventKind.CHUNK_COMPLETED) == []

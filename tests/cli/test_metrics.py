"""`tandemn metrics`: the present, the past, and watching."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandemn.cli import metrics as command
from tandemn.protocol.metrics import JobMetrics


def figures(state: str = "running", **fields: Any) -> JobMetrics:
    replica = {
        "replica_id": "job-1-r0",
        "state": "running",
        "gpu": "H100",
        "market": "spot",
        "seen_at": 998.0,
        "requests_per_s": 12.5,
        "tokens_per_s": 1600.0,
        "requests_done": 400,
        "output_tokens": 51200,
        "engine": {"running": 64, "waiting": 7, "kv_cache_use": 0.42, "ttft_s": 1.25, "tpot_s": 0.0201},
        "machine": {
            "cpu_use": 0.31,
            "memory_used_bytes": 20_000_000_000,
            "memory_total_bytes": 128_000_000_000,
            "gpus": [
                {"use": 0.97, "memory_used_bytes": 70_000_000_000, "memory_total_bytes": 80_000_000_000}
            ],
        },
    }
    values = {
        "job_id": "job-1",
        "state": state,
        "engine": "vllm",
        "at": 1000.0,
        "replicas": [replica],
        **fields,
    }
    return JobMetrics.model_validate(values)


SERIES = [
    {
        "replica_id": "job-1-r0",
        "step_s": 5.0,
        "points": [
            {"at": 0.0, "requests_done": 0, "output_tokens": 0, "running": 2},
            {"at": 10.0, "requests_done": 100, "output_tokens": 1000, "tokens_per_s": 100.0, "running": 6},
            {
                "at": 20.0,
                "requests_done": 400,
                "output_tokens": 4000,
                "tokens_per_s": 300.0,
                "kv_cache_use": 0.5,
            },
        ],
    }
]


def test_the_present_in_one_line_a_replica(plane, tandemn):
    plane.metrics["job-1"] = [figures()]
    out = tandemn("metrics", "job-1").out
    assert "job job-1: running, engine vllm" in out
    [row] = [line.split() for line in out.splitlines() if line.startswith("job-1-r0")]
    assert row[:9] == ["job-1-r0", "running", "12.5", "1,600", "64", "7", "42%", "1.2s", "20.1ms"]
    assert "20.0 GB of 128.0 GB" in out
    assert "70.0 GB of 80.0 GB" in out
    assert "2s ago" in out


def test_what_is_not_known_is_a_dash_and_a_simulation_says_so(plane, tandemn):
    bare = (
        figures()
        .replicas[0]
        .model_copy(update={"engine": None, "machine": None, "seen_at": None, "tokens_per_s": None})
    )
    plane.metrics["job-1"] = [figures(engine="simulated", replicas=[bare], left_out=3)]
    out = tandemn("metrics", "job-1").out
    assert "simulated: nothing is computed" in out
    [row] = [line.split() for line in out.splitlines() if line.startswith("job-1-r0")]
    assert row[3:] == ["-"] * 10 + ["never"]
    assert "and 3 older replicas" in out


def test_json_is_as_the_control_plane_says(plane, tandemn):
    plane.metrics["job-1"] = [figures()]
    assert json.loads(tandemn("metrics", "job-1", "--replica", "r0", "--json").out) == figures().model_dump(
        mode="json"
    )
    assert plane.called("GET", "/api/jobs/job-1/metrics") == [{"replica": "r0"}]


def test_the_past_of_an_ended_job_is_shown_unasked(plane, tandemn):
    plane.metrics["job-1"] = [figures("completed", series=SERIES)]
    out = tandemn("metrics", "job-1").out
    assert plane.called("GET", "/api/jobs/job-1/metrics")[-1] == {"series": "true"}
    row = out.splitlines()[-1].split()
    assert row[:6] == ["job-1-r0", "3", "20s", "400", "200", "300"]
    assert row[6:] == ["4.0", "6.0", "-", "50%", "-", "-"]


def test_nothing_was_kept(plane, tandemn):
    plane.metrics["job-1"] = [figures("failed", replicas=[], series=[])]
    assert "nothing was kept of the past" in tandemn("metrics", "job-1").out


def test_watching_ends_with_the_job(plane, tandemn, monkeypatch):
    monkeypatch.setattr(command, "LOOK_S", 0.01)
    plane.metrics["job-1"] = [figures(), figures(), figures("completed"), figures("completed", series=SERIES)]
    lines = tandemn("metrics", "job-1", "--watch", "--json").out.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["running", "running", "completed"]
    assert json.loads(lines[-1])["series"]


@pytest.mark.parametrize("flags", [("--watch", "--history")])
def test_the_present_or_the_past(tandemn, flags):
    result = tandemn("metrics", "job-1", *flags)
    assert result.code == 2
    assert "[wrong_usage]" in result.err

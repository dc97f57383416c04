"""Figures and logs of real engines: while a job computes, for Prometheus, and after its end."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from tests.process import traces, watch
from tests.process.conftest import built
from tests.process.house import House, chat_lines

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def watched() -> Iterator[House]:
    with built(TANDEMN_HEARTBEAT_S="0.5", TANDEMN_FLUSH_S="0.5", TANDEMN_LOG_FORMAT="json") as house:
        # Not by the first command that needs it: what runs in this process has not the house's environment.
        assert house.run("server", "start").returncode == 0
        yield house


def page(house: House) -> list[str]:
    record = json.loads((house.home / "server.json").read_text())
    asked = urllib.request.Request(
        f"{record['url']}/metrics", headers={"Authorization": f"Bearer {record['key']}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        text: str = answer.read().decode()
    return text.splitlines()


def submitted(here: Any, house: House, model: str, count: int, *flags: str) -> str:
    (house.home / "in.jsonl").write_text(chat_lines(count, max_tokens=64))
    done = here(house, "deploy", model, "in.jsonl", "--slo", "1h", "--cloud", "local", "--json", *flags)
    assert done.returncode == 0, done.stderr
    job_id: str = json.loads(done.stdout)["job_id"]
    return job_id


def looked(here: Any, house: House, *words: str) -> dict[str, Any]:
    done = here(house, "metrics", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


#: Slow enough to be looked at: some 40 s of work at 4 slots, of which a few are waited for.
SLOW = ("--engine", "simulated", "--", "--slots", "4", "--decode-step-s", "0.02")


def test_a_job_is_seen_while_it_computes_and_after_its_end(watched, here):
    job = submitted(here, watched, "any/model", 120, "--chunk-size", "20", *SLOW)

    def computes() -> dict[str, Any] | None:
        found = looked(here, watched, job)
        told = [each for each in found["replicas"] if each["engine"] and each["machine"]]
        busy = [each for each in told if each["engine"]["running"] and each["engine"]["tokens_per_s"]]
        return busy[0] if busy else None

    replica = watched.wait_for(computes)
    assert replica["engine"]["running"] <= 4
    assert 0 < replica["engine"]["kv_cache_use"] <= 1
    assert replica["engine"]["ttft_s"] > 0
    assert 0.01 < replica["engine"]["tpot_s"] < 1
    assert replica["machine"]["memory_total_bytes"] > replica["machine"]["memory_used_bytes"] > 0
    whose = f'{{job_id="{job}",replica_id="{replica["replica_id"]}"}}'
    names = {line.partition("{")[0] for line in page(watched) if whose in line}
    assert {
        "tandemn_engine_running_requests",
        "tandemn_engine_generated_tokens_total",
        "tandemn_machine_cpu_use_ratio",
        "tandemn_replica_silent_seconds",
    } <= names

    watching = watched.start("metrics", job, "--watch", "--json")
    assert json.loads(watching.stdout.readline())["state"] == "running"
    watch.kill_server(watched)
    assert watched.run("server", "start").returncode == 0
    followed = watched.start("logs", job, "--replica", "r0", "-f", "--json")
    assert watched.run("cancel", job).returncode == 0
    traces.ended(watched, job)
    said, _ = followed.communicate(timeout=60)
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["replica_id"] for line in lines} == {"r0"}
    logged = [json.loads(line["line"]) for line in lines]
    assert {line["replica_id"] for line in logged} == {replica["replica_id"]}
    assert any(line["event"] == "ending" for line in logged), "to the last line"
    assert {line.get("job_id") for line in logged if line["event"] != "assignment"} <= {job, None}
    assert next(line for line in logged if line["event"] == "engine is ready")["job_id"] == job

    said, why = watching.communicate(timeout=60)
    assert watching.returncode == 0, why
    assert json.loads(said.splitlines()[-1])["state"] == "cancelled", "it outlived the control plane"

    watched.wait_for(lambda: not any(job in line for line in page(watched)))
    past = looked(here, watched, job)
    [series] = past["series"]
    assert len(series["points"]) > 2
    assert max(point["running"] or 0 for point in series["points"]) > 0
    assert max(point["tokens_per_s"] or 0 for point in series["points"]) > 0
    shown = here(watched, "metrics", job).stdout
    assert "simulated: nothing is computed" in shown
    assert "PEAK" in shown


def test_llamacpp_tells_its_own_figures(watched, here):
    job = submitted(here, watched, "demo/tiny", 6000, "--chunk-size", "200", "--engine", "llamacpp")

    def computes() -> dict[str, Any] | None:
        found = looked(here, watched, job)
        busy = [each for each in found["replicas"] if each["engine"] and each["engine"]["tokens_per_s"]]
        return busy[0] if busy else None

    replica = watched.wait_for(computes)
    assert replica["engine"]["generated_tokens"] > 0
    assert replica["engine"]["tpot_s"] > 0
    assert replica["engine"]["kv_cache_use"] is None, "it does not tell"
    assert watched.run("cancel", job).returncode == 0
    traces.ended(watched, job)


@pytest.mark.slow
def test_the_control_planes_log_is_json_and_says_whose_each_line_is(watched, here):
    job = submitted(here, watched, "any/model", 400, *SLOW)
    watched.wait_for(lambda: watch.computing(watched, job))
    # What is killed outright is terminated, which is logged by whoever looks after the job.
    pid = watch.computing(watched, job)[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert watched.run("kill", job, "--replica", "r0").returncode == 0

    def terminated() -> list[dict[str, Any]]:
        text = (watched.home / "logs" / "server.log").read_text()
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
        return [line for line in lines if line["event"] == "terminating" and line.get("job_id") == job]

    assert watched.wait_for(terminated)[0]["replica_id"] == f"{job}-r0"
    assert watched.run("cancel", job).returncode == 0
    traces.ended(watched, job)

"""Engines, runners and control planes that die at bad moments, requests that kill, and holders that wake up."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest
from tests.process import watch
from tests.process.house import chat_lines, read_lines
from tests.process.scene import begin


def test_of_two_holders_of_a_chunk_only_the_present_one_counts(house):
    """A runner is stopped with its engine for longer than its lease, and wakes up."""
    house.environment |= {"TANDEMN_LEASE_S": "2", "TANDEMN_HEARTBEAT_S": "0.5"}
    requests = 600
    job = begin(house, requests, "--replicas", "2", "--chunk-size", "50")
    house.wait_for(lambda: len(watch.computing(house, job)) == 2)
    sleeper = watch.computing(house, job)[0]
    name = sleeper["replica_id"]

    def held() -> dict[int, str]:
        rows = watch.chunks(house, job)
        return {row["chunk"]: row["token"] for row in rows if row["holder"] == name and not row["done"]}

    tokens = house.wait_for(held)
    stopped = watch.family(sleeper["pid"])
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        house.wait_for(lambda: not held(), timeout=60)
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    watch.wait(house, job, "completed")
    assert watch.check_output(house, job, [f"r{number}" for number in range(requests)]) == []
    completed = watch.events(house, job, "chunk_completed")
    assert len({each["chunk"] for each in completed}) == len(completed) == 12, "a chunk was completed twice"
    rows = {row["chunk"]: row for row in watch.chunks(house, job)}
    for each in completed:
        assert rows[each["chunk"]]["token"] == each["token"]
        assert each["token"] != tokens.get(each["chunk"]), "completed under a lease that was taken away"
    log = (house.home / "logs" / "replicas" / f"{name}.log").read_text()
    refused = watch.events(house, job, "chunk_refused")
    assert refused or "chunk dropped" in log, "it never learnt that its lease was lost"
    watch.check_nothing_left(house, job)


def test_a_stopped_replica_does_not_outlive_its_job(house):
    """Also its engine and what holds that: neither can act while stopped, and both must end."""
    job = begin(house, 120, "--replicas", "1", "--chunk-size", "40")
    running = house.wait_for(lambda: watch.computing(house, job))
    processes = watch.family(running[0]["pid"])
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    watch.kill(running[0]["pid"])
    watch.wait(house, job, "completed")
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive, alive
    watch.check_nothing_left(house, job)


def test_a_request_that_kills_engines_is_tried_three_times_and_alone(house):
    """Its strikes are known to the next control plane and to the next replica."""
    requests, poison = 150, 37
    lines = [json.loads(line) for line in chat_lines(requests, max_tokens=16).splitlines()]
    lines[poison]["body"]["messages"][0]["content"] = "POISON"
    source = house.home / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)) + "\n")
    job = house.submit(
        *("any/model", str(source), "--slo", "4h", "--engine", "simulated", "--cloud", "local"),
        *("--chunk-size", "50", "--", "--slots", "8", "--decode-step-s", "0.02", "--crash-on", "POISON"),
    )

    def deaths() -> list[dict[str, Any]]:
        return watch.events(house, job, "engine_died")

    house.wait_for(deaths)
    watch.kill_server(house)
    house.run("server", "start")
    house.wait_for(lambda: len(deaths()) >= 2)
    for each in watch.replicas(house, job, "running"):
        watch.kill(each["pid"])
    watch.wait(house, job, "completed")
    failed = watch.check_output(house, job, [f"r{number}" for number in range(requests)])
    assert [(line["custom_id"], line["error"]["code"]) for line in failed] == [
        (f"r{poison}", "request_killed_engine")
    ]
    in_flight = [each["in_flight"] for each in deaths()]
    assert len(in_flight) == 3
    assert all(each == {"0": [poison]} for each in in_flight[1:]), "it was not tried alone"
    watch.check_nothing_left(house, job)


@pytest.fixture(scope="module")
def quiet_answers(tmp_path_factory):
    """What demo/tiny answers where nothing goes wrong."""
    from tests.process.house import House

    house = House(tmp_path_factory.mktemp("quiet"))
    try:
        return _answers(house, _submit(house))
    finally:
        house.close()


REQUESTS = 300

#: More of them: `TANDEMN_FAULT_SEEDS=20 pytest tests/process/test_faults_death.py -k random`.
SEEDS = range(1, 1 + int(os.environ.get("TANDEMN_FAULT_SEEDS", "1")))


def _submit(house):
    source = house.home / "in.jsonl"
    source.write_text(chat_lines(REQUESTS, max_tokens=192))
    return house.submit(
        *(
            "demo/tiny",
            str(source),
            "--slo",
            "4h",
            "--cloud",
            "local",
            "--replicas",
            "2",
            "--chunk-size",
            "20",
        )
    )


def _answers(house, job) -> dict[str, str]:
    watch.wait(house, job, "completed")
    assert watch.check_output(house, job, [f"r{number}" for number in range(REQUESTS)]) == []
    return {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in read_lines(house.home / "out.jsonl")
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_deaths_at_random_moments_change_no_answer(house, quiet_answers, seed):
    chance = random.Random(seed)
    job = _submit(house)

    def engine() -> None:
        running = chance.choice(watch.computing(house, job))
        if found := watch.engine_of(running["pid"]):
            found.kill()

    def runner() -> None:
        watch.kill(chance.choice(watch.computing(house, job))["pid"])

    def server() -> None:
        watch.kill_server(house)
        time.sleep(chance.uniform(0, 1))
        house.run("server", "start")

    def stop_and_start() -> None:
        assert house.run("server", "stop").returncode == 0
        assert not house.processes()
        house.run("server", "start")

    acts = [engine, runner, server, stop_and_start]
    chance.shuffle(acts)
    for act in acts:
        house.wait_for(lambda: watch.computing(house, job) or watch.state(house, job) == "completed")
        time.sleep(chance.uniform(0, 0.7))
        if watch.computing(house, job):
            with suppress(psutil.NoSuchProcess):
                act()
    assert _answers(house, job) == quiet_answers
    watch.check_nothing_left(house, job)


def test_a_control_plane_that_was_away_for_long_ends_no_replica_for_its_silence(house):
    job = begin(house, 600, "--replicas", "1", "--chunk-size", "40")
    house.wait_for(lambda: watch.computing(house, job))
    watch.kill_server(house)
    watch.change(house, "UPDATE replicas SET last_seen = last_seen - 3600")
    house.run("server", "start")
    watch.wait(house, job, "completed")
    had = [(each["state"], each["reason"], each["reason_code"]) for each in watch.replicas(house, job)]
    assert len(had) == 1, had
    assert watch.status(house, job)["requests"]["recomputed"] == 0
    watch.check_nothing_left(house, job)

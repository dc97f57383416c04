"""Two control planes on one state: either serves, one acts; killed or stopped, it is replaced, and nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from typing import Any

import psutil
import pytest
from tests.process import watch
from tests.process.scene import begin

REQUESTS = 400
#: What the issue asks for.
TAKEOVER_S = 15.0


def add_standby(house) -> dict[str, Any]:
    done = house.run("server", "start", "--standby", "--json")
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def ask_server(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/server", timeout=30) as answer:
        status: dict[str, Any] = json.load(answer)
    return status


def leads(url: str) -> bool:
    with suppress(OSError):
        return any(each["is_leading"] and each["url"] == url for each in ask_server(url)["control_planes"])
    return False


def elected_after(url: str, began: float) -> float:
    """Seconds from `began` until the control plane at `url` leads."""
    end = began + TAKEOVER_S
    while time.monotonic() < end:
        if leads(url):
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"nobody led within {TAKEOVER_S:g} s: {ask_server(url)}")


def check_nothing_twice(house, job: str) -> None:
    """Each replica was launched once and no other time: by the record, and by what its own log says."""
    launched = Counter(each["replica_id"] for each in watch.events(house, job, "replica_launched"))
    assert launched
    assert set(launched.values()) == {1}, launched
    for name in launched:
        log = house.home / "logs" / "replicas" / f"{name}.log"
        assigned = [line for line in log.read_text().splitlines() if '"event": "assignment"' in line]
        assert len(assigned) <= 1, f"{name} ran twice"


def check_all_there(house, job: str, requests: int = REQUESTS) -> None:
    assert watch.check_output(house, job, [f"r{number}" for number in range(requests)]) == []
    completed = Counter(each["chunk"] for each in watch.events(house, job, "chunk_completed"))
    assert set(completed.values()) == {1}
    check_nothing_twice(house, job)


def test_a_killed_leader_is_replaced_and_its_replicas_go_on_with_the_other(house):
    requests = 900
    job = begin(house, requests, "--replicas", "1", "--chunk-size", "30")
    first = json.loads((house.home / "server.json").read_text())
    second = add_standby(house)
    assert len(ask_server(second["url"])["control_planes"]) == 2
    assert leads(first["url"])
    house.wait_for(lambda: watch.computing(house, job))
    # Either serves: what is asked of the one that does not lead is done by the one that does.
    with urllib.request.urlopen(
        urllib.request.Request(
            f"{second['url']}/api/jobs/{job}/add",
            data=b'{"replicas": 1}',
            headers={"Content-Type": "application/json"},
        ),
        timeout=30,
    ) as answer:
        added = json.load(answer)["new"]
    house.wait_for(lambda: {each["replica_id"] for each in watch.computing(house, job)} > set(added))
    before = {each["replica_id"]: each["pid"] for each in watch.computing(house, job)}
    psutil.Process(first["pid"]).kill()
    began = time.monotonic()
    house.wait_for(lambda: leads(second["url"]), timeout=TAKEOVER_S)
    assert time.monotonic() - began < TAKEOVER_S
    assert house.server_pid() == second["pid"]
    watch.wait(house, job, "completed")
    check_all_there(house, job, requests)
    assert {each["replica_id"]: each["pid"] for each in watch.replicas(house, job)} == before
    assert watch.status(house, job)["requests"]["recomputed"] == 0
    watch.check_nothing_left(house, job)


def stop_between_writes(house, pid):
    """Freeze a process: one frozen within a write to SQLite holds its lock, and with that everybody else."""
    for _ in range(100):
        os.kill(pid, signal.SIGSTOP)
        state = house.home / "state.db"
        if not state.exists() or is_writable(state):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("it writes all the time")


def is_writable(state):
    with closing(sqlite3.connect(state, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["launching", "computing"])
def test_a_leader_that_was_stopped_and_wakes_up_does_nothing_a_second_time(house, moment):
    house.environment |= {"TANDEMN_LEADER_LEASE_S": "3", "TANDEMN_HEARTBEAT_S": "1"}
    house.run("server", "start")
    first = json.loads((house.home / "server.json").read_text())
    second = add_standby(house)
    job = begin(house, REQUESTS, "--replicas", "2", "--chunk-size", "30")
    if moment == "computing":
        house.wait_for(lambda: watch.computing(house, job))
    else:
        house.wait_for(lambda: watch.events(house, job, "replica_launched"))
    stop_between_writes(house, first["pid"])
    try:
        house.wait_for(lambda: leads(second["url"]), timeout=TAKEOVER_S)
        house.wait_for(lambda: watch.computing(house, job) or watch.state(house, job) == "completed")
    finally:
        os.kill(first["pid"], signal.SIGCONT)
    house.wait_for(lambda: leads(second["url"]) and not leads(first["url"]))
    watch.wait(house, job, "completed")
    check_all_there(house, job)
    watch.check_nothing_left(house, job)


def test_a_leader_that_could_not_write_for_a_while_leads_on(house):
    house.environment |= {"TANDEMN_LEADER_LEASE_S": "3", "TANDEMN_HEARTBEAT_S": "1"}
    job = begin(house, REQUESTS, "--replicas", "2", "--chunk-size", "30")
    house.wait_for(lambda: watch.computing(house, job))
    with watch.nobody_can_write(house):
        time.sleep(4.5)  # longer than it trusts its seat without a beat
    watch.wait(house, job, "completed")
    check_all_there(house, job)
    watch.check_nothing_left(house, job)


def test_a_leader_that_ends_in_order_hands_over_with_replicas_and_queue(house):
    house.run("server", "start")
    first = house.server_pid()
    second = add_standby(house)
    job = begin(house, REQUESTS, "--replicas", "2", "--chunk-size", "30")
    house.wait_for(lambda: watch.computing(house, job))
    before = {each["replica_id"]: each["pid"] for each in watch.replicas(house, job)}
    leader = psutil.Process(first)
    leader.terminate()
    leader.wait(30)
    house.wait_for(lambda: leads(second["url"]), timeout=TAKEOVER_S)
    watch.wait(house, job, "completed")
    check_all_there(house, job)
    assert {each["replica_id"]: each["pid"] for each in watch.replicas(house, job)} == before
    watch.check_nothing_left(house, job)


#: Each is gone for the other control plane in its own way: its process is seen to be gone; nothing is heard of it,
#: as of another machine.
MOMENTS = [("launching", signal.SIGKILL), ("computing", signal.SIGKILL), ("computing", signal.SIGSTOP)]


@pytest.mark.slow
def test_leaders_killed_one_after_another_under_load(house):
    """3,000 requests on four replicas; `pytest -s` prints how long nobody led, each time."""
    requests, engine = 3000, ("--slots", "8", "--decode-step-s", "0.02")
    house.run("server", "start")
    job = begin(house, requests, "--replicas", "4", "--chunk-size", "25", engine=engine)
    leader = json.loads((house.home / "server.json").read_text())
    seconds, stopped = [], []
    for number, (moment, sign) in enumerate(MOMENTS):
        other = add_standby(house)
        assert leads(leader["url"])
        if moment == "launching":
            house.wait_for(lambda: watch.events(house, job, "replica_launched"))
        else:
            done = watch.done(house, job) + 10
            house.wait_for(lambda done=done: watch.computing(house, job) and watch.done(house, job) > done)
        began = time.monotonic()
        os.kill(leader["pid"], sign)
        seconds.append(round(elected_after(other["url"], began), 2))
        if sign == signal.SIGSTOP:
            stopped.append(leader["pid"])
        assert watch.state(house, job) != "completed", f"too quick to show anything: {number}"
        assert set(watch.runners(house).values()) <= {1}
        leader = other
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    watch.wait(house, job, "completed")
    check_all_there(house, job, requests)
    assert len(watch.replicas(house, job)) == 4, "a replica was replaced that never died"
    recomputed = watch.status(house, job)["requests"]["recomputed"]
    watch.check_nothing_left(house, job)
    print(json.dumps({"takeover_s": seconds, "requests": requests, "recomputed": recomputed}))  # noqa: T201 - what the test is run for

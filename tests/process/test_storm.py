"""A job under everything at once; `make soak` is the same with 20,000 requests."""

from __future__ import annotations

import pytest
from tests.process import watch
from tests.process.house import chat_lines
from tests.process.storm import Plan, run_storm

pytestmark = pytest.mark.alone


def test_nothing_is_lost_or_doubled_in_a_storm(house):
    figures = run_storm(house, Plan(requests=1500, kill_every_s=4.0, patience_s=280))
    assert figures.replicas_killed >= 2
    assert figures.recomputed_by_engines <= figures.allowed
    # Never more than happened; fewer by what was on its way, or was computed under a lease that was lost.
    assert figures.recomputed_reported <= figures.recomputed_by_engines


def test_graceful_stops_compute_nothing_twice(house):
    """SIGTERM, `kill`, `swap` and a stop of the server: the engines' own journal has every request once."""
    count = 1200
    source, journal = house.home / "in.jsonl", house.home / "journal"
    source.write_text(chat_lines(count, max_tokens=16))
    engine = ["--slots", "8", "--decode-step-s", "0.02", "--journal", str(journal)]
    job = house.submit(
        *("any/model", str(source), "--slo", "4h", "--engine", "simulated", "--cloud", "local"),
        *("--gpu", "L4", "--replicas", "3", "--chunk-size", "60", "--", *engine),
    )
    running = house.wait_for(lambda: watch.done(house, job) and watch.computing(house, job))
    watch.kill(running[0]["pid"], 15)
    killed = house.run("kill", job, "--replica", running[-1]["replica_id"], "--json")
    assert killed.returncode == 0, killed.stderr
    house.wait_for(lambda: watch.done(house, job) >= 5)
    assert house.run("server", "stop").returncode == 0
    assert not house.processes(), "a stop of the server ends its replicas"
    assert house.run("server", "start").returncode == 0
    house.wait_for(lambda: watch.computing(house, job))
    swapped = house.run("swap", job, "--gpu", "H100", "--replicas", "2", "--json")
    assert swapped.returncode == 0, swapped.stderr
    status = watch.wait(house, job, "completed")
    assert watch.check_output(house, job, [f"r{number}" for number in range(count)]) == []
    assert set(watch.journal(journal).values()) == {1}, "a request was computed twice"
    assert status["requests"]["recomputed"] == 0
    watch.check_nothing_left(house, job)

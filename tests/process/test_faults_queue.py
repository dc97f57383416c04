"""Redis killed, emptied and away, in the middle of a job."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import redis
from tests.process import watch
from tests.process.house import chat_lines
from tests.process.scene import begin, groups, refused
from tests.redis_server import redis_server


def finish(house, job, requests):
    status = house.wait(job, "completed")
    assert status["requests"]["completed"] == requests
    assert watch.check_output(house, job, [f"r{number}" for number in range(requests)]) == []


def test_redis_is_killed_and_emptied_and_the_job_completes(house):
    requests = 700
    journal = house.home / "journal"
    engine = ("--slots", "8", "--decode-step-s", "0.02", "--journal", str(journal))
    job = begin(house, requests, "--replicas", "2", "--chunk-size", "35", engine=engine)
    house.wait_for(lambda: watch.done(house, job) >= 2)
    before = watch.redis_pid(house)
    watch.kill(before)
    house.wait_for(lambda: watch.redis_pid(house) != before)
    seen = watch.done(house, job)
    house.wait_for(lambda: watch.done(house, job) > seen)
    record = json.loads((house.home / "redis" / "redis.json").read_text())
    with closing(redis.Redis(unix_socket_path=record["socket"])) as client:
        assert client.keys(f"*{job}*")
        client.flushall()
    finish(house, job, requests)
    assert watch.events(house, job, "queue_rebuilt")[-1]["epoch"] >= 2
    # Nobody died but Redis: a chunk whose lease was void is taken up where its parts end.
    assert watch.status(house, job)["requests"]["recomputed"] <= 2 * 35
    watch.check_nothing_left(house, job)


def test_while_redis_is_away_changes_are_refused_and_change_nothing(house):
    requests = 500
    with redis_server() as (server, running):
        house.environment |= {"TANDEMN_REDIS_URL": running.url}
        job = begin(house, requests, "--replicas", "2", "--chunk-size", "25")
        house.wait_for(lambda: len(watch.computing(house, job)) == 2)
        server.stop()
        try:
            for words in (
                ["add", job, "1"],
                ["kill", job, "--replica", "r0"],
                ["swap", job, "--gpu", "H100"],
            ):
                assert "queue_unavailable" in refused(house, *words)
            assert groups(house, job) == [2]
            assert not [each for each in watch.replicas(house, job) if each["kill_requested"]]
            assert len(watch.replicas(house, job)) == 2
        finally:
            server.start_or_adopt()
        finish(house, job, requests)
        with closing(redis.Redis(unix_socket_path=running.socket)) as client:
            assert not client.keys(f"*{job}*")
        house.run("server", "stop")


@pytest.mark.parametrize("code", ["batch_expired"])
def test_a_job_that_stops_at_its_deadline_keeps_what_it_has(house, code):
    requests = 3000
    source = house.home / "in.jsonl"
    source.write_text(chat_lines(requests, max_tokens=16))
    job = house.submit(
        *("any/model", str(source), "--slo", "12s", "--stop-at-deadline", "--engine", "simulated"),
        *("--cloud", "local", "--chunk-size", "50", "--", "--slots", "8", "--decode-step-s", "0.02"),
    )
    house.wait(job, "expired")
    failed = watch.check_output(house, job, [f"r{number}" for number in range(requests)])
    assert {line["error"]["code"] for line in failed} == {code}
    # Also what was finished of chunks that were not.
    assert 0 < len(failed) < requests
    watch.check_nothing_left(house, job)

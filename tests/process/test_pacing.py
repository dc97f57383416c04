"""A job that one replica would not finish in time gets more, unless its user said how many."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.process.conftest import built
from tests.process.house import chat_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.house import House


#: Four requests a second of one replica: two at a time, ten tokens of 50 ms each.
ENGINE = ("--engine", "simulated", "--", "--slots", "2", "--decode-step-s", "0.05")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with built(TANDEMN_PACE_S="0.5", TANDEMN_HEARTBEAT_S="0.5", TANDEMN_FLUSH_S="0.5") as house:
        assert house.run("server", "start").returncode == 0
        yield house


def submitted(house: House, requests: int, slo: str, *flags: str) -> str:
    (house.home / "batch.jsonl").write_text(chat_lines(requests, max_tokens=10))
    return house.submit("some/model", "batch.jsonl", "--slo", slo, *flags, *ENGINE)


def paced(house: House, job_id: str) -> list[dict[str, object]]:
    done = house.run("events", job_id, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [event["data"] for event in events if event["kind"] == "job_paced"]


def test_a_job_that_would_be_late_gets_replicas_and_meets_its_deadline(house):
    job_id = submitted(house, 200, "35s")
    house.wait_for(lambda: len(house.status(job_id)["replicas"]) > 1)
    shown = house.run("status", job_id).stdout
    status = house.wait(job_id, "completed")
    [first, *_] = paced(house, job_id)
    assert first["requested"]
    assert " instead of 1, to be in time at the " in str(first["reason"])
    assert "pacing" in shown
    assert status["requests"]["completed"] == 200
    assert not status["is_late"], paced(house, job_id)


def test_a_number_of_replicas_that_the_user_gave_is_not_paced(house):
    job_id = submitted(house, 40, "3s", "--replicas", "1")
    status = house.wait(job_id, "completed")
    assert len(status["replicas"]) == 1
    assert status["pace"] is None
    assert paced(house, job_id) == []

"""What the tests of faults do alike: begin a slow job, ask for changes, cut it short."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.process import watch
from tests.process.house import chat_lines

if TYPE_CHECKING:
    from tests.process.house import House

#: A replica computes some 25 requests a second: slow enough for things to happen meanwhile.
ENGINE = ("--slots", "8", "--decode-step-s", "0.02")


def begin(house: House, requests: int, *options: str, engine: tuple[str, ...] = ENGINE) -> str:
    source = house.home / "in.jsonl"
    source.write_text(chat_lines(requests, max_tokens=16))
    return house.submit(
        *("any/model", str(source), "--slo", "4h", "--engine", "simulated", "--cloud", "local"),
        *("--gpu", "L4", *options, "--", *engine),
    )


def tell(house: House, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = house.json(*words)
    return answer


def refused(house: House, *words: str) -> str:
    done = house.run(*words, "--json")
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def end(house: House, job: str, requests: int) -> None:
    """Cut a job short that has shown what it was to show; every request has its line all the same."""
    assert house.run("cancel", job).returncode == 0
    house.wait(job, "cancelled")
    failed = watch.check_output(house, job, [f"r{number}" for number in range(requests)])
    assert {line["error"]["code"] for line in failed} <= {"batch_cancelled"}
    watch.check_nothing_left(house, job)


def groups(house: House, job: str) -> list[int]:
    row = watch.query(house, "SELECT groups FROM jobs WHERE job_id = ?", job)[0]
    return [group["wanted"] for group in json.loads(row["groups"])]

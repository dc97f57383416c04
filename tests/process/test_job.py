"""A job as the README shows it, on the embedded engine: every flag that shapes it, and nothing left of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from tests.process import traces
from tests.process.house import House, chat_lines, read_lines

from tandemn.fleet.engines.engine import DEMO_MODEL, EngineName, EngineSpec
from tandemn.fleet.engines.llamacpp import LlamaCpp
from tandemn.fleet.engines.process import EngineProcess

REQUESTS = 300


@pytest.fixture(scope="module")
def house(shared_house: House) -> House:
    assert shared_house.run("server", "start").returncode == 0
    return shared_house


def request_lines(count: int, url: str, **body: Any) -> str:
    lines = ({"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i in range(count))
    return "".join(json.dumps(line) + "\n" for line in lines)


def submitted(here: Any, house: House, name: str, content: str, *flags: str) -> str:
    (house.home / name).write_text(content)
    done = here(house, "deploy", "demo/tiny", name, "--slo", "1h", "--json", *flags)
    assert done.returncode == 0, done.stderr
    job_id: str = json.loads(done.stdout)["job_id"]
    return job_id


#: Minutes of work; the first ones are answered at once.
LONG = "".join(
    json.dumps(
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "messages": [{"role": "user", "content": str(number)}],
                "max_tokens": 3 if number < 12 else 3000,
                "ignore_eos": True,
            },
        }
    )
    + "\n"
    for number in range(300)
)


def test_the_job_of_the_readme(house):
    (house.home / "batch.jsonl").write_text(chat_lines(REQUESTS))

    done = house.run(
        *("deploy", "demo/tiny", "batch.jsonl", "--slo", "4h", "--replicas", "2", "--chunk-size", "25"),
        *("--wait", "-o", "answers.jsonl", "--json"),
    )

    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["state"] == "completed"
    assert status["requests"] == {"total": REQUESTS, "completed": REQUESTS, "failed": 0, "recomputed": 0}
    assert status["chunks"] == {"total": 12, "pending": 0, "leased": 0, "completed": 12, "failed": 0}
    assert [replica["state"] for replica in status["replicas"]] == ["completed", "completed"]
    answers = read_lines(house.home / "answers.jsonl")
    assert [answer["custom_id"] for answer in answers] == [f"r{number}" for number in range(REQUESTS)]
    assert all(answer["response"]["status_code"] == 200 for answer in answers)
    assert not (house.home / "answers.jsonl.errors.jsonl").exists()
    assert not list(house.home.glob(".tandemn-*"))

    plain = asyncio.run(asked_plainly(house, range(0, REQUESTS, 11)))
    by_batch = {
        number: answers[number]["response"]["body"]["choices"][0]["message"]["content"] for number in plain
    }
    assert by_batch == plain
    assert all(plain.values())
    traces.nothing_runs(house)


async def asked_plainly(house: House, numbers: Any) -> dict[int, str]:
    """What a plain client is answered by the same engine, one request at a time."""
    spec = EngineSpec(engine=EngineName.LLAMACPP, model=DEMO_MODEL, api_key="key")
    engine = EngineProcess(LlamaCpp(house.home / "models"), spec, house.home / "plain.log")
    lines = chat_lines(REQUESTS).splitlines()
    answers: dict[int, str] = {}
    await engine.start()
    try:
        await engine.wait_ready(60)
        async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="key", max_retries=0) as client:
            for number in numbers:
                body = json.loads(lines[number])["body"]
                answer = await client.chat.completions.create(model=DEMO_MODEL, **body)
                answers[number] = answer.choices[0].message.content or ""
    finally:
        await engine.stop()
        engine.log_path.unlink()
    return answers


def test_endpoints_and_what_shapes_the_answers(house, here):
    """Four jobs beside each other: text completions, embeddings, an output limit, arguments for the engine."""
    text = submitted(
        here, house, "text.jsonl", request_lines(8, "/v1/completions", prompt="Once", max_tokens=5)
    )
    vector = submitted(here, house, "vector.jsonl", request_lines(8, "/v1/embeddings", input=["one", "two"]))
    user = [{"role": "user", "content": "x"}]
    limited = submitted(
        *(here, house, "limited.jsonl", request_lines(8, "/v1/chat/completions", messages=user)),
        *("--max-output-tokens", "4", "--chunk-size", "3"),
    )
    long = [{"role": "user", "content": "x" * 300}]
    small = submitted(
        *(here, house, "small.jsonl", request_lines(2, "/v1/chat/completions", messages=long, max_tokens=5)),
        *("--", "--slots", "2", "--ctx", "128"),
    )

    def answers(job_id: str) -> list[dict[str, Any]]:
        status = traces.ended(house, job_id)
        assert status["state"] == "completed", status
        done = here(house, "download", job_id, "-o", "out.jsonl")
        assert done.returncode == 0, done.stderr
        return [line["response"]["body"] for line in read_lines(house.home / "out.jsonl")]

    bodies = answers(text)
    assert len(bodies) == 8
    assert all(body["usage"]["completion_tokens"] <= 5 for body in bodies)
    assert all(isinstance(body["choices"][0]["text"], str) for body in bodies)
    bodies = answers(vector)
    assert len(bodies) == 8
    assert all(len(body["data"]) == 2 for body in bodies)
    bodies = answers(limited)
    assert len(bodies) == 8
    assert all(body["usage"]["completion_tokens"] <= 4 for body in bodies)
    assert traces.asked(house, f"/api/jobs/{limited}")["chunks"]["total"] == 3
    # 300 characters do not fit into a context of 128: the engine's own words stand in the error lines.
    assert answers(small) == []
    errors = read_lines(house.home / "out.jsonl.errors.jsonl")
    assert [line["custom_id"] for line in errors] == ["r0", "r1"]
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert all("context" in line["error"]["message"] for line in errors)
    assert here(house, "status", small).stdout.count("2 failed of 2") == 1
    traces.nothing_runs(house)


def test_partial_answers_then_cancel(house, here):
    job_id = submitted(here, house, "long.jsonl", LONG, "--chunk-size", "4", "--replicas", "2")
    traces.until(house, job_id, lambda status: status["chunks"]["completed"] >= 3)
    refused = here(house, "download", job_id)
    assert refused.returncode == 2
    assert "[job_not_ended]" in refused.stderr
    assert "--partial" in refused.stderr
    partial = here(house, "download", job_id, "--partial")
    assert partial.returncode == 0, partial.stderr
    early = [json.loads(line)["custom_id"] for line in partial.stdout.splitlines()]
    assert early[:12] == [f"r{number}" for number in range(12)]

    done = here(house, "cancel", job_id, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    (status,) = json.loads(done.stdout)["jobs"]
    assert status["state"] == "cancelled"
    assert here(house, "download", job_id, "-o", "cancelled.jsonl").returncode == 0
    answers = read_lines(house.home / "cancelled.jsonl")
    errors = read_lines(house.home / "cancelled.jsonl.errors.jsonl")
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    ids = [line["custom_id"] for line in answers]
    assert set(early) <= set(ids)
    assert sorted(ids + [line["custom_id"] for line in errors]) == sorted(f"r{i}" for i in range(300))
    assert (len(answers), len(errors)) == (status["requests"]["completed"], status["requests"]["failed"])
    # Once more is no error: it has ended.
    assert here(house, "cancel", job_id).returncode == 0
    traces.nothing_runs(house)


def test_what_persists_is_ended_by_destroy(house, here):
    job_id = submitted(here, house, "few.jsonl", chat_lines(4), "--persist")
    status = traces.ended(house, job_id)
    assert status["state"] == "completed"
    assert [replica["state"] for replica in status["replicas"]] == ["running"]
    assert traces.runners(house)
    long = submitted(here, house, "long.jsonl", LONG, "--chunk-size", "4")
    traces.until(house, long, lambda status: status["state"] == "running")

    done = here(house, "destroy", "--all", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    assert {job["job_id"] for job in json.loads(done.stdout)["jobs"]} == {job_id, long}
    assert traces.ended(house, long)["state"] == "cancelled"
    traces.nothing_runs(house)
    ended = traces.until(house, job_id, lambda each: each["replicas"][0]["state"] != "running")
    assert ended["replicas"][0]["state"] == "killed"
    assert here(house, "destroy", "--all", "--yes").stdout == "nothing runs\n"


def test_logs_events_and_lists(house, here):
    job_id = submitted(here, house, "few.jsonl", chat_lines(4))
    traces.ended(house, job_id)
    logs = here(house, "logs", job_id)
    assert logs.returncode == 0, logs.stderr
    assert all(line.startswith("r0 ") for line in logs.stdout.splitlines())
    assert "engine is ready" in logs.stdout
    assert here(house, "logs", job_id, "--replica", "r7").returncode == 2
    assert here(house, "logs", job_id, "--tail", "1").stdout.count("\n") == 1
    events = [json.loads(line) for line in here(house, "events", job_id, "--json").stdout.splitlines()]
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "job_submitted"
    assert kinds[-1] == "job_ended"
    assert {"job_planned", "replica_ready", "replica_began", "chunk_completed", "job_sealed", "replica_ended"} <= set(kinds)  # fmt: skip
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    listed = json.loads(here(house, "list", "--json").stdout)["jobs"]
    assert listed[0]["job_id"] == job_id
    assert here(house, "status", job_id[:-4]).stdout.startswith("job")
    assert here(house, "status", "job-nothing").returncode == 2
    progress = here(house, "progress", job_id)
    assert progress.returncode == 0
    assert "completed" in progress.stdout
    traces.nothing_runs(house)

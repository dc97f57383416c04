"""The same job on S3 over real HTTP: input uploaded or read in place, answers by presigned URLs, nothing left."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import urllib.request
from typing import TYPE_CHECKING

import pytest
from tests.process import traces
from tests.process.conftest import built
from tests.process.house import House, chat_lines, read_lines

from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 60
#: Above one part of a multipart upload (8 MiB); the padding is a field that engines ignore.
PADDING = "x" * 150_000


@pytest.fixture
def house(s3_url) -> Iterator[House]:
    """A house whose objects are in a bucket."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with built(TANDEMN_OBJECTS_URL=s3_url, TANDEMN_FLUSH_S="0.5", **aws) as house:
        yield house


@pytest.fixture
def inputs(s3_server) -> str:
    """A bucket of the user's own."""
    bucket = f"inputs-{secrets.token_hex(4)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}"


def names_in(url: str) -> list[str]:
    async def names() -> list[str]:
        return [name async for name, _ in ObjectStore.open(url).list()]

    return asyncio.run(names())


def open_uploads(s3_server: str, url: str) -> int:
    with urllib.request.urlopen(f"{s3_server}/{url.split('/')[2]}?uploads") as answer:
        return int(answer.read().count(b"<UploadId>"))


def padded() -> str:
    lines = [json.loads(line) for line in chat_lines(COUNT).splitlines()]
    for line in lines:
        line["body"]["user"] = PADDING
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_jobs_on_s3(house, here, s3_server, s3_url, inputs, caplog):
    caplog.set_level(logging.INFO, logger="werkzeug")
    assert house.run("server", "start").returncode == 0
    (house.home / "big.jsonl").write_text(padded())
    asyncio.run(ObjectStore.open(inputs).put("some/where.jsonl", chat_lines(COUNT, prefix="p").encode()))
    slow = chat_lines(COUNT, max_tokens=3000).replace('"temperature": 0', '"ignore_eos": true')
    slow = chat_lines(4, prefix="quick") + slow
    (house.home / "slow.jsonl").write_text(slow)

    def deploy(source: str, *flags: str) -> str:
        done = here(house, "deploy", "demo/tiny", source, "--slo", "1h", "--json", *flags)
        assert done.returncode == 0, done.stderr
        job_id: str = json.loads(done.stdout)["job_id"]
        return job_id

    uploaded = deploy("big.jsonl", "--chunk-size", "20")
    in_place = deploy(f"{inputs}/some/where.jsonl", "--chunk-size", "7")
    cancelled = deploy("slow.jsonl", "--chunk-size", "100")

    parts = f"jobs/{cancelled}/parts/"
    house.wait_for(lambda: any(name.startswith(parts) for name in names_in(s3_url)))
    assert here(house, "cancel", cancelled, "--wait").returncode == 0
    for job_id, prefix in ((uploaded, "r"), (in_place, "p")):
        status = traces.ended(house, job_id)
        assert status["state"] == "completed", status
        assert here(house, "download", job_id, "-o", f"{job_id}.jsonl").returncode == 0
        answers = read_lines(house.home / f"{job_id}.jsonl")
        assert [answer["custom_id"] for answer in answers] == [f"{prefix}{i}" for i in range(COUNT)]
    assert here(house, "download", cancelled, "-o", "cancelled.jsonl").returncode == 0
    kept = [line["custom_id"] for line in read_lines(house.home / "cancelled.jsonl")]
    assert kept[:4] == [f"quick{number}" for number in range(4)]
    refused = read_lines(house.home / "cancelled.jsonl.errors.jsonl")
    assert len(kept) + len(refused) == COUNT + 4

    # A refused input leaves nothing in the bucket either, and one that is not there is said to be missing.
    (house.home / "bad.jsonl").write_text("nonsense\n")
    assert here(house, "deploy", "demo/tiny", "bad.jsonl", "--slo", "1h").returncode == 2
    missing = here(house, "deploy", "demo/tiny", f"{inputs}/nowhere.jsonl", "--slo", "1h")
    assert missing.returncode == 1
    assert "[object_not_found]" in missing.stderr
    no_bucket = here(house, "deploy", "demo/tiny", "s3://no-such-bucket-at-all/x.jsonl", "--slo", "1h")
    assert no_bucket.returncode == 1
    assert "s3://no-such-bucket-at-all" in no_bucket.stderr

    # Two inputs were uploaded; every other object is an output.
    left = names_in(s3_url)
    uploads = [name for name in left if name.startswith("files/")]
    assert len(uploads) == 2
    outputs = {f"jobs/{job_id}/output.jsonl" for job_id in (uploaded, in_place, cancelled)}
    assert set(left) - set(uploads) == outputs | {f"jobs/{cancelled}/errors.jsonl"}
    assert names_in(inputs) == ["some/where.jsonl"]
    assert open_uploads(s3_server, s3_url) == 0
    # The control plane signs its own requests in a header; a signature in the query is a runner's.
    presigned = [line for line in caplog.messages if "X-Amz-Signature" in line]
    assert any(f"PUT /{s3_url[5:]}/{parts}" in line for line in presigned)
    assert any(f"PUT /{s3_url[5:]}/jobs/{in_place}/chunks/" in line for line in presigned)
    assert any(f"GET /{inputs[5:]}/some/where.jsonl?" in line for line in presigned)
    house.wait_for(lambda: not traces.runners(house), timeout=30)
    assert traces.redis_keys(house) == []
    assert traces.work(house) == []

from __future__ import annotations

import asyncio

import psutil
import pytest
from tests.batch.lines import line

from tandemn.batch import input_process
from tandemn.batch.input_process import Parameters, load_index, validate_in_process, validate_input
from tandemn.errors import Broken, NotFound
from tandemn.objects import ObjectStore


@pytest.fixture
def store(tmp_path):
    return ObjectStore.open(tmp_path)


@pytest.mark.parametrize("small", [0, 1 << 30])
async def test_a_thread_and_a_process_find_the_same(store, monkeypatch, small):
    monkeypatch.setattr(input_process, "SMALL_INPUT_BYTES", small)
    data = b"\n".join([line("a"), b"bad", line("b"), line("a")])
    await store.put("in.jsonl", data)
    told: list[int] = []
    report = await validate_input(
        store, "in.jsonl", index_store=store, index_name="in.index", skip_invalid=True, progress=told.append
    )
    assert [(error.line, error.code.value) for error in report.errors] == [
        (2, "invalid_json"),
        (4, "duplicate_custom_id"),
    ]
    index = await load_index(store, "in.index")
    assert (report.requests, len(index.starts), len(index.skipped), index.end) == (2, 2, 2, len(data))


async def test_a_large_input_on_s3_is_validated_in_place_with_progress(s3_url):
    store = ObjectStore.open(s3_url)
    body = {"messages": [{"role": "user", "content": "x" * 1000}]}
    data = b"\n".join(line(f"{i}", body=body) for i in range(20_000))
    await store.put("in.jsonl", data)
    told: list[int] = []
    report = await validate_input(
        store, "in.jsonl", index_store=store, index_name="in.index", progress=told.append
    )
    assert report.requests == 20_000
    assert report.is_valid
    assert told == sorted(told)
    assert told


async def test_a_missing_input_is_not_found(store):
    with pytest.raises(NotFound):
        await validate_input(store, "none", index_store=store, index_name="index")
    parameters = Parameters(store=store.url, name="none", index_store=store.url, index_name="index")
    with pytest.raises(NotFound) as failure:
        await validate_in_process(parameters)
    assert failure.value.code == "object_not_found"
    assert not await store.exists("index")


async def test_a_process_that_dies_is_told_with_its_last_words(store):
    parameters = Parameters(
        store=store.url,
        name="none",
        index_store=store.url,
        index_name="index",
        max_errors="no number",  # type: ignore[arg-type]  # what it dies of
    )
    with pytest.raises(Broken, match="ValidationError") as failure:
        await validate_in_process(parameters)
    assert failure.value.code == "validation_failed"


async def test_cancelling_ends_the_process(store):
    await store.put("in.jsonl", b"\n".join(line(f"{i}") for i in range(300_000)))
    parameters = Parameters(store=store.url, name="in.jsonl", index_store=store.url, index_name="index")
    before = {child.pid for child in psutil.Process().children()}
    working = asyncio.create_task(validate_in_process(parameters))
    while not (started := {child.pid for child in psutil.Process().children()} - before):
        await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not any(psutil.pid_exists(pid) for pid in started)
    assert not await store.exists("index")

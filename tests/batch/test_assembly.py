from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from tests.batch.lines import line, validated

from tandemn.batch.answers import Answer, encode_segment
from tandemn.batch.assembly import AssemblyNames, ChunkObjects, UnfinishedChunk, assemble
from tandemn.errors import Broken, NotFound
from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAMES = AssemblyNames(
    input="in.jsonl", output="out/output.jsonl", errors="out/errors.jsonl", settled_prefix="settled"
)


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    where = tmp_path if request.param == "folder" else request.getfixturevalue("s3_url")
    return ObjectStore.open(where)


async def given(*chunks: ChunkObjects | UnfinishedChunk) -> AsyncIterator[ChunkObjects | UnfinishedChunk]:
    for chunk in chunks:
        yield chunk


async def finished(store: ObjectStore, number: int, outputs: list[str], errors: list[str]) -> ChunkObjects:
    names: dict[str, str | None] = {}
    for kind, ids in (("output", outputs), ("errors", errors)):
        names[kind] = f"chunks/{number}/1-1.{kind}" if ids else None
        if ids:
            data = b"".join(json.dumps({"custom_id": name}).encode() + b"\n" for name in ids)
            await store.put(f"chunks/{number}/1-1.{kind}", data)
    return ChunkObjects(
        chunk=number,
        requests=len(outputs) + len(errors),
        output=names["output"],
        output_lines=len(outputs),
        errors=names["errors"],
        error_lines=len(errors),
    )


async def ids_in(store: ObjectStore, name: str) -> list[str]:
    return [json.loads(text)["custom_id"] for text in (await store.get(name)).splitlines()]


async def test_finished_and_cut_off_chunks_are_joined_in_input_order(store):
    data = b"\n".join([*(line(f"{i}") for i in range(6)), b"bad", *(line(f"{i}") for i in range(6, 9))])
    await store.put("in.jsonl", data)
    ranges = validated(data, 3)
    first = [
        Answer(index=2, kind="o", line=b'{"custom_id":"5"}'),
        Answer(index=0, kind="e", line=b'{"custom_id":"3"}'),
    ]
    await store.put("parts/1/1-1-1", encode_segment(first) + b'1 o {"custom_id":"torn')
    await store.put(
        "parts/1/1-2-1", encode_segment([Answer(index=2, kind="o", line=b'{"custom_id":"again"}')])
    )
    chunks: list[ChunkObjects | UnfinishedChunk] = [
        await finished(store, 0, ["0", "2"], ["1"]),
        UnfinishedChunk(
            range=ranges[1],
            parts=["parts/1/1-1-1", "parts/1/1-2-1"],
            code="batch_cancelled",
            message="cancelled",
        ),
        UnfinishedChunk(range=ranges[2], parts=[], code="batch_expired", message="too late"),
    ]
    for _ in range(2):
        done = await assemble(store, given(*chunks), names=NAMES, batch_id="b", requests=9)
        assert (done.output_lines, done.error_lines) == (3, 6)
        assert await ids_in(store, NAMES.output) == ["0", "2", "5"]
        assert await ids_in(store, NAMES.errors) == ["1", "3", "4", "6", "7", "8"]
        codes = [json.loads(text).get("error") for text in (await store.get(NAMES.errors)).splitlines()]
        assert [error and error["code"] for error in codes] == [
            None,
            None,
            "batch_cancelled",
            "batch_expired",
            "batch_expired",
            "batch_expired",
        ]
        assert done.output_bytes == await store.size(NAMES.output)
        assert [name async for name, _ in store.list("settled")] == []


async def test_nothing_failed_means_no_error_object(store):
    done = await assemble(
        store, given(await finished(store, 0, ["a"], [])), names=NAMES, batch_id="b", requests=1
    )
    assert (done.error_lines, done.error_bytes) == (0, 0)
    assert not await store.exists(NAMES.errors)
    assert await ids_in(store, NAMES.output) == ["a"]


async def test_lines_that_are_too_many_or_too_few_are_never_handed_out(store):
    one = await finished(store, 0, ["a", "b"], [])
    for chunks, requests, named in (
        ([one], 3, "1 chunks hold 2"),
        ([dataclasses.replace(one, requests=3)], 3, "chunk 0 holds 2"),
        ([dataclasses.replace(one, chunk=1)], 2, "chunk 0 is missing"),
        ([dataclasses.replace(one, output=None)], 2, "chunk 0 has 2 lines"),
        ([], 2, "0 chunks"),
    ):
        with pytest.raises(Broken, match=named) as failure:
            await assemble(store, given(*chunks), names=NAMES, batch_id="b", requests=requests)
        assert failure.value.code == "assembly_incomplete"
        assert not await store.exists(NAMES.output)


async def test_a_named_object_that_is_gone_is_told(store):
    one = await finished(store, 0, ["a"], [])
    await store.delete(one.output or "")
    with pytest.raises(NotFound):
        await assemble(store, given(one), names=NAMES, batch_id="b", requests=1)
    assert not await store.exists(NAMES.output)

"""What every object store promises, run unchanged on a folder and on S3 over HTTP."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tandemn.errors import InvalidInput, NotFound
from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1024 * 1024


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return ObjectStore.open(tmp_path / "objects")
    return ObjectStore.open(request.getfixturevalue("s3_url"))


def open_uploads(store: ObjectStore, s3_server: str | None) -> int:
    """Unfinished writes that the store still holds."""
    if store.local_root is not None:
        staging = store.local_root / ".staging"
        return len(list(staging.iterdir())) if staging.is_dir() else 0
    bucket = store.url.split("/")[2]
    with urllib.request.urlopen(f"{s3_server}/{bucket}?uploads") as answer:
        return int(answer.read().count(b"<UploadId>"))


async def names_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [name async for name, _ in store.list(prefix)]


async def blocks_of(*blocks: bytes):
    for block in blocks:
        yield block


async def test_what_is_put_can_be_got_ranged_measured_and_deleted(store):
    await store.put("a/b.jsonl", b"0123456789")

    assert await store.get("a/b.jsonl") == b"0123456789"
    assert await store.get_range("a/b.jsonl", 2, 5) == b"234"
    assert await store.get_range("a/b.jsonl", 8, 99) == b"89"
    assert await store.get_range("a/b.jsonl", 4, 4) == b""
    assert await store.get_range("a/b.jsonl", 50, 60) == b""
    assert await store.size("a/b.jsonl") == 10
    assert await store.exists("a/b.jsonl")
    await store.delete("a/b.jsonl")
    assert not await store.exists("a/b.jsonl")
    await store.delete("a/b.jsonl")


async def test_a_put_replaces(store):
    await store.put("x", b"one")
    await store.put("x", b"two!")
    assert await store.get("x") == b"two!"


@pytest.mark.parametrize("name", ["missing", "a/missing", "file/below", "a"])
async def test_a_missing_object_is_named(store, name):
    await store.put("a/b", b"1")
    await store.put("file", b"1")
    for read in (store.get(name), store.size(name), store.concat("dest", [name]), anext(store.stream(name))):
        with pytest.raises(NotFound) as failure:
            await read
        assert failure.value.code == "object_not_found"
        assert name in str(failure.value)
    assert not await store.exists(name)
    assert await names_of(store) == ["a/b", "file"]


async def test_empty_objects_are_objects(store):
    await store.put("empty", b"")
    assert await store.put_stream("empty-stream", blocks_of()) == 0
    assert await store.get("empty") == b""
    assert [block async for block in store.stream("empty-stream")] == []
    assert await store.concat("joined", ["empty", "empty-stream"]) == 0
    assert await store.concat("nothing", []) == 0
    assert await store.size("nothing") == 0


async def test_large_streams_go_in_and_out_in_blocks(store):
    block = bytes(range(256)) * 4096
    assert await store.put_stream("large", blocks_of(*[block] * 21, b"tail")) == 21 * MIB + 4

    assert await store.size("large") == 21 * MIB + 4
    read = [piece async for piece in store.stream("large")]
    assert max(map(len, read)) <= MIB
    assert b"".join(read) == block * 21 + b"tail"
    middle = [piece async for piece in store.stream("large", 5 * MIB - 3, 14 * MIB + 1)]
    assert b"".join(middle) == (block * 21)[5 * MIB - 3 : 14 * MIB + 1]
    assert all(isinstance(piece, bytes) for piece in read + middle)


async def test_a_reader_may_stop_early(store):
    await store.put_stream("large", blocks_of(*[b"x" * MIB] * 20))
    stream = store.stream("large")
    assert len(await anext(stream)) == MIB
    await stream.aclose()


async def test_listing_is_in_name_order_below_a_prefix(store):
    names = ["a", "a-b", "a/b", "a/b-c/d", "a/b/c", "a0", "é", "z/1", "z/10", "z/2"]
    names.remove("a")  # a folder cannot hold the file `a` beside the folder `a`
    names.remove("a/b")
    for name in reversed(names):
        await store.put(name, name.encode())

    assert [entry async for entry in store.list()] == [
        (name, len(name.encode())) for name in sorted(names, key=str.encode)
    ]
    assert await names_of(store, "z") == ["z/1", "z/10", "z/2"]
    assert await names_of(store, "a") == ["a/b-c/d", "a/b/c"]
    assert await names_of(store, "nothing") == []


async def test_long_listings_are_paged(store):
    await asyncio.gather(*(store.put(f"many/{i:04}", b"") for i in range(1050)))
    assert await names_of(store, "many") == [f"many/{i:04}" for i in range(1050)]
    await store.delete_prefix("many")
    assert await names_of(store) == []


async def test_deleting_a_prefix_leaves_its_neighbours(store):
    for name in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a", "jobs/2"):
        await store.put(name, b"1")
    await store.delete_prefix("jobs/1")
    await store.delete_prefix("jobs/1")
    assert await names_of(store) == ["jobs/10/a", "jobs/2"]
    if store.local_root:
        assert not (store.local_root / "jobs" / "1").exists()


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_concat_joins_in_order(store, count):
    parts = [f"{i}".encode() * (3 * i * 100_000) for i in range(1, count + 1)]
    for i, part in enumerate(parts):
        await store.put(f"parts/{i}", part)
    names = [f"parts/{i}" for i in range(count)]
    assert await store.concat("out/joined", names) == sum(map(len, parts))
    assert await store.get("out/joined") == b"".join(parts)
    assert await store.concat("out/joined", names) == sum(map(len, parts))
    assert len(await names_of(store, "parts")) == count


async def test_concat_takes_objects_larger_than_one_request(store):
    await store.put_stream("one", blocks_of(*[b"1" * MIB] * 10))
    await store.put("two", b"2")
    assert await store.concat("joined", ["two", "one", "two"]) == 10 * MIB + 2
    assert await store.get("joined") == b"2" + b"1" * (10 * MIB) + b"2"


async def test_a_source_that_fails_leaves_nothing(store, s3_server):
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB
        raise RuntimeError("the client went away")

    await store.put("kept", b"old")
    with pytest.raises(RuntimeError, match="went away"):
        await store.put_stream("kept", failing())
    assert await store.get("kept") == b"old"
    assert open_uploads(store, s3_server) == 0


async def test_a_cancelled_write_leaves_nothing(store, s3_server):
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB
        started.set()
        await asyncio.Event().wait()
        yield b""

    writing = asyncio.create_task(store.put_stream("never", endless()))
    await started.wait()
    assert open_uploads(store, s3_server) == 1
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert open_uploads(store, s3_server) == 0
    assert not await store.exists("never")


async def test_a_concat_that_fails_leaves_nothing(store, s3_server):
    await store.put_stream("one", blocks_of(*[b"1" * MIB] * 20))
    with pytest.raises(NotFound):
        await store.concat("joined", ["one", "one", "missing"])
    assert not await store.exists("joined")
    assert open_uploads(store, s3_server) == 0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "../a",
        ".",
        "./a",
        "a\x00b",
        "a\nb",
        "\ud800",
        "x" * 2000,
        ".staging/a",
    ],
)
async def test_names_that_leave_the_store_are_refused(store, name):
    for act in (store.put(name, b"1"), store.get(name), store.delete(name), store.concat("a", [name])):
        with pytest.raises(InvalidInput) as failure:
            await act
        assert failure.value.code == "invalid_object_name"


@pytest.mark.parametrize(
    "name", ["with space", "per%20cent", "hash#tag", "q?a=b&c", "ünï/code", "plus+", "a~b'\""]
)
async def test_odd_names_work(store, name):
    await store.put(name, b"1")
    await store.put_stream(f"{name}-stream", blocks_of(b"2"))
    await store.concat(f"{name}-copy", [name])
    assert await store.get(name) == b"1"
    assert await store.get(f"{name}-copy") == b"1"
    assert await names_of(store) == sorted([name, f"{name}-stream", f"{name}-copy"])


async def test_signed_urls_read_and_write_where_the_store_signs(store):
    await store.put("signed/in put", b"hello")
    read, write = await store.sign_get("signed/in put", 60), await store.sign_put("signed/out", 60)
    if store.local_root:
        assert read is None
        assert write is None
        return
    assert read is not None
    assert write is not None
    with urllib.request.urlopen(read) as answer:
        assert answer.read() == b"hello"
    urllib.request.urlopen(
        urllib.request.Request(write, data=b"written", method="PUT", headers={"content-type": "text/plain"})
    ).close()
    assert await store.get("signed/out") == b"written"


async def test_many_writers_do_not_meet(store):
    async def write(i: int) -> None:
        await store.put("shared", f"{i}".encode() * 1000)

    await asyncio.gather(*(write(i) for i in range(10)))
    assert re.fullmatch(rb"(\d)\1{999}", await store.get("shared"))

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tandemn.errors import InvalidInput, StoreUnavailable
from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def store(tmp_path):
    return ObjectStore.open(tmp_path)


@pytest.fixture
def small_files():
    """As on a full disk: no file may grow past 1 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


async def blocks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 500_000


async def test_no_room_is_said_and_leaves_nothing(store, tmp_path, small_files):
    await store.put("half", b"x" * 900_000)
    for write in (
        store.put("big", b"x" * 2_000_000),
        store.put_stream("big", blocks(5)),
        store.concat("big", ["half", "half"]),
    ):
        with pytest.raises(StoreUnavailable) as failure:
            await write
        assert failure.value.code == "store_full"
        assert str(tmp_path) in str(failure.value)
    assert [name async for name, _ in store.list()] == ["half"]
    assert list((tmp_path / ".staging").iterdir()) == []


async def test_what_a_killed_writer_left_is_removed_at_the_next_start(store, tmp_path):
    await store.put("a", b"1")
    staging = tmp_path / ".staging"
    for name in ("dead", "alive", "young"):
        (staging / name).write_bytes(b"half")
    for name in ("dead", "alive"):
        os.utime(staging / name, (0, 0))
    with (staging / "alive").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ObjectStore.open(tmp_path)
    assert sorted(path.name for path in staging.iterdir()) == ["alive", "young"]


async def test_files_of_others_are_denied(tmp_path):
    store = ObjectStore.open(tmp_path)
    tmp_path.chmod(0o500)
    # In a process of its own: root may do everything, and gives that up there, with all that it needs loaded.
    code = (
        "import asyncio, concurrent.futures.thread, os, sys\n"
        "from tandemn.errors import InvalidInput\n"
        "from tandemn.objects import ObjectStore\n"
        "store = ObjectStore.open(sys.argv[1])\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "try:\n"
        "    asyncio.run(store.put('a', b'1'))\n"
        "except InvalidInput as exc:\n"
        "    print(exc.code)\n"
    )
    denied = subprocess.run(
        [sys.executable, "-c", code, store.url], capture_output=True, text=True, check=False
    )
    assert denied.stdout == "objects_denied\n", denied.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((InvalidInput, StoreUnavailable), match="file"):
        ObjectStore.open(tmp_path / "file" / "below")


async def test_joined_objects_are_whole_whatever_their_sizes(store, monkeypatch):
    monkeypatch.setattr("tandemn.objects.folder.WRITE_OUT_BYTES", 1_000_000)
    sizes = {"one": 3_000_000, "none": 0, "two": 1, "three": 2_500_000}
    for name, size in sizes.items():
        await store.put(name, name[:1].encode() * size)
    assert await store.concat("joined", list(sizes)) == 5_500_001
    assert await store.get("joined") == b"o" * 3_000_000 + b"t" * 2_500_001


async def test_copies_go_through_memory_where_the_kernel_has_none(store, monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    await store.put("one", b"1" * 3_000_000)
    await store.put("two", b"2")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert await store.concat("joined", ["one", "two"]) == 3_000_001
    assert await store.get("joined") == b"1" * 3_000_000 + b"2"


async def test_a_cancelled_concat_stops_and_leaves_nothing(store, tmp_path, monkeypatch):
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def never_done(_source: int, dest: int, _count: int) -> int:
        loop.call_soon_threadsafe(entered.set)
        return os.write(dest, b"x")

    await store.put("one", b"1" * 30_000_000)
    monkeypatch.setattr(os, "copy_file_range", never_done)
    joining = asyncio.create_task(store.concat("joined", ["one"]))
    await entered.wait()
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert list((tmp_path / ".staging").iterdir()) == []
    assert not await store.exists("joined")


async def test_writers_and_removers_of_a_folder_do_not_hurt_each_other(store):
    for i in range(50):
        await asyncio.gather(store.put(f"a/b/{i}", b"1"), store.delete_prefix("a"))


@pytest.mark.parametrize("where", ["ftp://host/x", "s3://", "s3:///", "http://example.com/x"])
def test_places_that_hold_no_objects_are_refused(where):
    with pytest.raises(InvalidInput) as failure:
        ObjectStore.open(where)
    assert failure.value.code == "invalid_objects_url"


def test_a_folder_may_be_a_path_a_string_or_a_url(tmp_path):
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        assert ObjectStore.open(where).local_root == tmp_path
        assert ObjectStore.open(where).url == str(tmp_path)


async def test_a_name_below_an_object_is_refused_where_files_cannot_have_one(store):
    await store.put("a/b", b"1")
    for name in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidInput) as failure:
            await store.put(name, b"1")
        assert failure.value.code == "invalid_object_name"
    assert [name async for name, _ in store.list()] == ["a/b"]

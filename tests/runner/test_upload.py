"""Storing answers, against a control plane that speaks the protocol."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.fakes.control_plane import TOKEN, ControlPlane

from tandemn.batch.answers import decode_segment
from tandemn.client import ReplicaClient
from tandemn.errors import Broken
from tandemn.protocol.replicas import LeaseRequest
from tandemn.runner.chunks import Chunks, HeldChunk, Phase
from tandemn.runner.upload import Uploader

LINES = [b'{"n":%d}' % n for n in range(4)]


@contextlib.asynccontextmanager
async def holding(
    plane: ControlPlane, folder: Path, *, store_full_s: float = 60
) -> AsyncIterator[tuple[Uploader, HeldChunk, Chunks, list[Broken]]]:
    """Hold the first chunk of a job, begun."""
    broken: list[Broken] = []
    chunks = Chunks()
    async with plane, ReplicaClient(plane.url, "job-1-r0", TOKEN) as client:
        for lease in (await client.lease(LeaseRequest(limit=1))).leases:
            chunks.add(lease)
        (chunk,) = chunks
        chunk.begin(folder)
        uploader = Uploader(client, chunks, on_broken=broken.append, store_full_s=store_full_s)
        yield uploader, chunk, chunks, broken
        await uploader.finish_up(1)
        chunk.close()


async def test_each_part_has_what_was_answered_since_the_last_one(tmp_path):
    plane = ControlPlane(LINES)
    async with holding(plane, tmp_path) as (uploader, chunk, _, _):
        await uploader.flush()
        assert plane.stored_parts(0) == {}
        chunk.spool.append(2, b"{}", is_error=False)
        await uploader.flush()
        chunk.spool.append(0, b"{}", is_error=True)
        await uploader.flush()
        await uploader.flush()
        parts = plane.stored_parts(0)
        assert sorted(parts) == ["parts/0/1-1-0", "parts/0/1-1-1"]
        assert [[a.index for a in decode_segment(raw)] for raw in parts.values()] == [[2], [0]]


async def test_a_part_that_could_not_be_stored_is_in_the_next(tmp_path):
    plane = ControlPlane(LINES)
    async with holding(plane, tmp_path) as (uploader, chunk, _, broken):
        chunk.spool.append(1, b"{}", is_error=False)
        plane.is_full = True
        await uploader.flush()
        notes = [uploader.note]
        plane.is_full = False
        chunk.spool.append(3, b"{}", is_error=False)
        await uploader.flush()
        (raw,) = plane.stored_parts(0).values()
        assert [answer.index for answer in decode_segment(raw)] == [1, 3]
        assert [*notes, uploader.note] == ["the store is full", None]
        assert broken == []


async def test_a_store_that_stays_full_is_given_up(tmp_path):
    plane = ControlPlane(LINES)
    async with holding(plane, tmp_path, store_full_s=0.05) as (uploader, chunk, _, broken):
        chunk.spool.append(1, b"{}", is_error=False)
        plane.is_full = True
        await uploader.flush()
        await asyncio.sleep(0.1)
        await uploader.flush()
        assert [error.code for error in broken] == ["store_full"]


async def test_what_cannot_be_completed_in_time_is_stored_as_a_part(tmp_path):
    plane = ControlPlane(LINES)
    async with holding(plane, tmp_path) as (uploader, chunk, chunks, _):
        for index in range(4):
            chunk.spool.append(index, b"{}", is_error=False)
        plane.is_full = True
        uploader.finish(chunk)
        assert chunk.phase is Phase.COMPUTED
        await asyncio.sleep(0.05)
        plane.is_full = False
        await uploader.finish_up(0)
        (raw,) = plane.stored_parts(0).values()
        assert raw.count(b"\n") == 4
        assert len(chunks) == 1


async def test_a_lost_lease_drops_the_chunk_and_its_file(tmp_path):
    plane = ControlPlane(LINES)
    async with holding(plane, tmp_path) as (uploader, chunk, chunks, broken):
        chunk.spool.append(1, b"{}", is_error=False)
        plane.take_away(0)
        await uploader.flush()
        assert (len(chunks), chunks.lost, chunk.is_dropped) == (0, 1, True)
        assert list(tmp_path.iterdir()) == []
        assert broken == []


async def test_what_was_computed_while_the_control_plane_was_silent_is_stored_without_it(tmp_path):
    plane, store = ControlPlane(LINES), ControlPlane(LINES)
    async with store, holding(plane, tmp_path) as (uploader, chunk, _, broken):
        plane.store_url = store.url
        chunk.spool.append(1, b"{}", is_error=False)
        await uploader.flush()
        await plane.stop()
        chunk.spool.append(3, b"{}", is_error=False)
        await uploader.flush()
        assert sorted(store.objects) == ["parts/0/1-1-0"], "nobody says where another part may go"
        chunk.spool.append(0, b"{}", is_error=False)
        await uploader.store_unheard()
        parts = [decode_segment(raw) for _, raw in sorted(store.objects.items())]
        assert [[answer.index for answer in part] for part in parts] == [[1], [3, 0]]
        await uploader.store_unheard()  # once
        assert len(store.objects) == 2
        assert broken == []

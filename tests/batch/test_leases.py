"""The lease desk on the memory queue and table: who may complete what, and what survives a lost queue."""

from __future__ import annotations

import pytest

from tandemn.batch.chunk_table import ChunkResult, ChunkRow, MemoryChunkTable
from tandemn.batch.leases import LeaseDesk
from tandemn.batch.memory_queue import MemoryQueue
from tandemn.clock import MockClock
from tandemn.errors import Conflict, LeaseLost, StoreUnavailable

JOB = "job-1"
RESULT = ChunkResult(completed=1, failed=0)
LEASE_MS = 12_000


class House:
    def __init__(self, chunks: int = 4, table: MemoryChunkTable | None = None) -> None:
        self.clock = MockClock()
        self.queue = MemoryQueue(self.clock)
        self.table = table or MemoryChunkTable()
        self.table.add_job(JOB, [ChunkRow(chunk=i, requests=1) for i in range(chunks)])
        self.desk = LeaseDesk(self.queue, self.table, lease_ms=LEASE_MS)

    async def lease(self, holder, limit=1, **options):
        return await self.desk.lease(JOB, holder=holder, limit=limit, **options)

    async def complete(self, lease, holder="a"):
        await self.desk.complete(JOB, holder=holder, chunk=lease.row.chunk, token=lease.token, result=RESULT)


@pytest.fixture
def house():
    return House()


async def test_chunks_are_given_in_order_and_once(house):
    assert [each.row.chunk for each in await house.lease("a", 2)] == [0, 1]
    assert [each.row.chunk for each in await house.lease("b", 9)] == [2, 3]


async def test_a_completion_counts_and_may_be_repeated(house):
    [lease] = await house.lease("a")
    await house.complete(lease)
    await house.complete(lease)
    assert await house.table.unfinished(JOB) == [1, 2, 3]


async def test_whose_lease_ran_out_and_was_given_on_cannot_complete(house):
    [old] = await house.lease("a")
    await house.desk.begin(JOB, chunk=0, token=old.token)
    house.clock.advance(LEASE_MS / 1000 + 1)
    [new] = await house.lease("b")
    assert (new.row.chunk, new.row.grants) == (0, 2)
    with pytest.raises(LeaseLost):
        await house.complete(old)
    assert await house.desk.renew(JOB, holder="a", tokens={0: old.token}) == [0]
    await house.complete(new, "b")


async def test_a_revoked_holder_cannot_complete_and_its_chunks_come_first(house):
    [lease] = await house.lease("a")
    assert await house.desk.revoke(JOB, holder="a") == [0]
    with pytest.raises(LeaseLost):
        await house.complete(lease)
    assert [each.row.chunk for each in await house.lease("b")] == [0]


async def test_a_delayed_revoke_keeps_the_chunks_back_until_they_are_freed(house):
    [lease] = await house.lease("a")
    assert await house.desk.revoke(JOB, holder="a", delay_ms=20_000) == [0]
    with pytest.raises(LeaseLost):
        await house.complete(lease)
    assert [each.row.chunk for each in await house.lease("b", 9)] == [1, 2, 3]
    assert await house.lease("c", steal=True) != [], "unbegun chunks of b can be stolen, kept ones cannot"
    assert await house.desk.free(JOB, holder="a") == [0]
    assert [each.row.chunk for each in await house.lease("d")] == [0]


async def test_a_delayed_revoke_ends_by_itself(house):
    await house.lease("a")
    await house.desk.revoke(JOB, holder="a", delay_ms=20_000)
    house.clock.advance(21)
    assert [each.row.chunk for each in await house.lease("b")] == [0]


async def test_a_lost_queue_is_rebuilt_without_what_is_done(house):
    first, second = await house.lease("a", 2)
    await house.complete(first)
    house.queue.forget()
    assert [each.row.chunk for each in await house.lease("b", 9)] == [1, 2, 3]
    with pytest.raises(LeaseLost):
        await house.complete(second)
    assert await house.desk.renew(JOB, holder="a", tokens={1: second.token}) == [1]


async def test_a_second_desk_finds_the_queue_that_the_first_rebuilt(house):
    await house.lease("a")
    other = LeaseDesk(house.queue, house.table, lease_ms=LEASE_MS)
    house.queue.forget()
    assert [each.row.chunk for each in await house.lease("a")] == [0]
    assert [each.row.chunk for each in await other.lease(JOB, holder="b", limit=1)] == [1]
    assert await house.table.epoch(JOB) == 2


async def test_a_chunk_done_in_the_table_but_not_in_the_queue_is_not_given_again(house):
    [lease] = await house.lease("a")
    await house.table.complete(JOB, chunk=0, token=lease.token, holder="a", result=RESULT)
    house.clock.advance(LEASE_MS / 1000 + 1)
    assert [each.row.chunk for each in await house.lease("b", 9)] == [1, 2, 3]
    assert (await house.desk.counts(JOB)).by_holder == {"b": 3}


async def test_the_audit_rebuilds_a_queue_that_lacks_a_chunk(house):
    [lease] = await house.lease("a")
    await house.queue.complete(JOB, chunk=0, token=lease.token)
    await house.desk.open(JOB)
    assert [each.row.chunk for each in await house.lease("b", 9)] == [0, 1, 2, 3]


async def test_a_sealed_job_gives_and_counts_nothing(house):
    [lease] = await house.lease("a")
    house.table.seal(JOB)
    with pytest.raises(LeaseLost):
        await house.complete(lease)
    assert await house.lease("b", 9) == []
    assert await house.desk.revoke(JOB, holder="a") == [0]
    with pytest.raises(Conflict):
        await LeaseDesk(house.queue, house.table, lease_ms=LEASE_MS).lease(JOB, holder="c", limit=1)


async def test_a_queue_lost_after_the_seal_only_tells_holders_that_they_lost(house):
    [lease] = await house.lease("a")
    house.table.seal(JOB)
    house.queue.forget()
    assert await house.desk.renew(JOB, holder="a", tokens={0: lease.token}) == [0]
    with pytest.raises(LeaseLost):
        await house.desk.begin(JOB, chunk=0, token=lease.token)


async def test_a_grant_that_cannot_be_recorded_is_given_back():
    class FullTable(MemoryChunkTable):
        fails = True

        async def grant(self, job_id, *, holder, grants):
            if self.fails:
                raise StoreUnavailable("disk full")
            return await super().grant(job_id, holder=holder, grants=grants)

    table = FullTable()
    house = House(table=table)
    with pytest.raises(StoreUnavailable):
        await house.lease("a", 2)
    table.fails = False
    assert [each.row.chunk for each in await house.lease("b", 9)] == [0, 1, 2, 3]


async def test_forgetting_a_job_leaves_nothing(house):
    await house.lease("a")
    await house.desk.forget(JOB)
    house.queue.forget()
    assert (await house.table.epoch(JOB)) == 1

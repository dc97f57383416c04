"""Each rule of the queue, once, on both implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.redis_server import redis_server

from tandemn.batch.memory_queue import MemoryQueue
from tandemn.batch.queue import Grant, QueueCounts, Token
from tandemn.batch.redis_queue import RedisQueue
from tandemn.clock import MockClock
from tandemn.errors import LeaseLost, QueueLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tandemn.batch.queue import ChunkQueue

JOB = "job-1"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (_, process):
        yield process.url


@pytest.fixture
def clock() -> MockClock:
    return MockClock(start=1_800_000_000.0)


@pytest.fixture(params=["memory", "redis"])
async def queue(request: pytest.FixtureRequest, url: str, clock: MockClock) -> AsyncIterator[ChunkQueue]:
    if request.param == "memory":
        yield MemoryQueue(clock)
        return
    redis = RedisQueue(url, clock=clock)
    yield redis
    await redis.drop(JOB)
    await redis.aclose()


async def lease(
    queue: ChunkQueue, holder: str, limit: int = 1, *, steal: bool = False, epoch: int = 1
) -> list[Grant]:
    return await queue.lease(JOB, epoch=epoch, holder=holder, limit=limit, lease_ms=1000, steal=steal)


def chunks_of(grants: list[Grant]) -> list[int]:
    return [grant.chunk for grant in grants]


async def test_chunks_are_given_in_the_order_of_the_load(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=[5, 3, 9])
    assert chunks_of(await lease(queue, "a", 2)) == [5, 3]
    assert chunks_of(await lease(queue, "b", 2)) == [9]
    assert await lease(queue, "b", 2) == []
    counts = await queue.counts(JOB, epoch=1)
    assert counts == QueueCounts(pending=0, leased=3, by_holder={"a": 2, "b": 1})


async def test_tokens_rise_and_first_grants_are_no_regrants(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=7, chunks=range(4))
    grants = await lease(queue, "a", 3, epoch=7) + await lease(queue, "b", epoch=7)
    tokens = [grant.token for grant in grants]
    assert tokens == sorted(set(tokens))
    assert {token.epoch for token in tokens} == {7}
    assert not any(grant.regrant for grant in grants)


async def test_an_ended_lease_goes_to_the_front_and_its_token_dies(
    queue: ChunkQueue, clock: MockClock
) -> None:
    await queue.load(JOB, epoch=1, chunks=range(20))
    old = await lease(queue, "a", 12)
    clock.advance(1.0)
    new = await lease(queue, "b", 13)
    assert chunks_of(new) == list(range(13))
    assert [grant.regrant for grant in new] == [True] * 12 + [False]
    for operation in (queue.begin, queue.complete, queue.release):
        with pytest.raises(LeaseLost, match="chunk 0 of job job-1"):
            await operation(JOB, chunk=0, token=old[0].token)
    await queue.complete(JOB, chunk=0, token=new[0].token)


async def test_an_ended_lease_nobody_took_back_still_counts(queue: ChunkQueue, clock: MockClock) -> None:
    await queue.load(JOB, epoch=1, chunks=[0])
    [grant] = await lease(queue, "a")
    clock.advance(60)
    await queue.complete(JOB, chunk=0, token=grant.token)
    assert await queue.held(JOB, epoch=1) == []


async def test_renew_moves_the_end_and_names_what_is_lost(queue: ChunkQueue, clock: MockClock) -> None:
    await queue.load(JOB, epoch=1, chunks=range(3))
    kept, gone, other_epoch = await lease(queue, "a", 3)
    await queue.release(JOB, chunk=1, token=gone.token)
    tokens = {0: kept.token, 1: gone.token, 2: Token(9, other_epoch.token.sequence), 77: kept.token}
    clock.advance(0.9)
    assert await queue.renew(JOB, epoch=1, holder="a", tokens=tokens, lease_ms=1000) == [1, 2, 77]
    assert await queue.renew(JOB, epoch=1, holder="b", tokens={0: kept.token}, lease_ms=9000) == [0]
    clock.advance(0.9)
    assert chunks_of(await lease(queue, "b", 3)) == [2, 1], "2 ended after 1 was given back"


async def test_completed_means_gone_and_only_once(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=[0, 1])
    [grant] = await lease(queue, "a")
    await queue.complete(JOB, chunk=0, token=grant.token)
    with pytest.raises(LeaseLost):
        await queue.complete(JOB, chunk=0, token=grant.token)
    assert await queue.held(JOB, epoch=1) == [1]


async def test_release_and_revoke_go_to_the_front_lowest_first(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=range(30))
    grants = await lease(queue, "a", 12)
    await lease(queue, "b", 1)
    await queue.release(JOB, chunk=4, token=grants[4].token)
    assert await queue.revoke(JOB, epoch=1, holder="a") == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert await queue.revoke(JOB, epoch=1, holder="a") == []
    assert chunks_of(await lease(queue, "c", 14)) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 4, 13, 14]


async def test_steal_takes_the_last_unbegun_chunk_of_the_richest(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=range(6))
    rich = await lease(queue, "rich", 3)
    poor = await lease(queue, "poor", 2)
    assert chunks_of(await lease(queue, "thief", 5, steal=True)) == [5], "pending ones come first"
    await queue.begin(JOB, chunk=0, token=rich[0].token)
    await queue.begin(JOB, chunk=3, token=poor[0].token)
    [stolen] = await lease(queue, "thief", 5, steal=True)
    assert (stolen.chunk, stolen.regrant) == (2, True)
    with pytest.raises(LeaseLost):
        await queue.begin(JOB, chunk=2, token=rich[2].token)
    assert chunks_of(await lease(queue, "thief", steal=True)) == [4], "of equals, the later grant"
    assert chunks_of(await lease(queue, "thief", steal=True)) == [1]
    assert await lease(queue, "thief", steal=True) == [], "all others are begun, its own are not stolen"
    assert await lease(queue, "idle", 0, steal=True) == []


async def test_a_load_replaces_the_queue_and_older_tokens_die(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=range(3))
    [old] = await lease(queue, "a")
    await queue.load(JOB, epoch=2, chunks=[0, 2])
    with pytest.raises(LeaseLost):
        await queue.complete(JOB, chunk=0, token=old.token)
    with pytest.raises(QueueLost):
        await lease(queue, "a", epoch=1)
    [new] = await lease(queue, "a", epoch=2)
    assert not new.regrant, "in this epoch nobody held it"
    assert new.token.sequence > old.token.sequence
    assert sorted(await queue.held(JOB, epoch=2)) == [0, 2]


async def test_a_load_of_an_older_epoch_is_refused(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=5, chunks=[1])
    with pytest.raises(QueueLost):
        await queue.load(JOB, epoch=4, chunks=[1, 2])
    await queue.load(JOB, epoch=5, chunks=[3])
    assert await queue.held(JOB, epoch=5) == [3]


async def test_a_token_of_a_newer_epoch_says_that_the_queue_is_lost(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=[1])
    with pytest.raises(QueueLost):
        await queue.complete(JOB, chunk=1, token=Token(2, 1))


async def test_what_is_not_loaded_or_dropped_is_lost(queue: ChunkQueue) -> None:
    for _ in range(2):
        with pytest.raises(QueueLost) as raised:
            await queue.counts(JOB, epoch=1)
        assert raised.value.code == "queue_lost"
        assert raised.value.object_id == JOB
        for call in (
            queue.held(JOB, epoch=1),
            queue.revoke(JOB, epoch=1, holder="a"),
            queue.renew(JOB, epoch=1, holder="a", tokens={}, lease_ms=1),
            queue.release(JOB, chunk=1, token=Token(1, 1)),
        ):
            with pytest.raises(QueueLost):
                await call
        await queue.load(JOB, epoch=1, chunks=[1])
        await queue.drop(JOB)
        await queue.drop(JOB)


async def test_an_empty_load_is_a_queue_all_the_same(queue: ChunkQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=[])
    assert await lease(queue, "a", steal=True) == []
    assert await queue.counts(JOB, epoch=1) == QueueCounts(pending=0, leased=0, by_holder={})


def test_tokens_are_read_back_as_written() -> None:
    assert Token.parse(str(Token(3, 1_800_000_000_000_123))) == Token(3, 1_800_000_000_000_123)
    with pytest.raises(ValueError):
        Token.parse("3")

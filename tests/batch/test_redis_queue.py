"""What only a real server can do: forget, die, fill up, hang, lose a reply."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from redis.asyncio import Redis
from tests.redis_server import redis_server

from tandemn.batch import redis_lane
from tandemn.batch.redis_queue import LOAD_PART, RedisQueue
from tandemn.errors import LeaseLost, QueueLost, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tandemn.batch.queue import Grant
    from tandemn.control.embedded_redis import EmbeddedRedis, RedisProcess

JOB = "job-1"


@pytest.fixture
def server() -> Iterator[tuple[EmbeddedRedis, RedisProcess]]:
    with redis_server() as started:
        yield started


@pytest.fixture
async def queue(server: tuple[EmbeddedRedis, RedisProcess]) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(server[1].url)
    yield queue
    await queue.aclose()


@pytest.fixture
async def redis(server: tuple[EmbeddedRedis, RedisProcess]) -> AsyncIterator[Redis]:
    async with Redis.from_url(server[1].url) as client:
        yield client


async def lease(queue: RedisQueue, limit: int = 1, lease_ms: int = 60_000) -> list[Grant]:
    return await queue.lease(JOB, epoch=1, holder="a", limit=limit, lease_ms=lease_ms)


def chunks_of(grants: list[Grant]) -> list[int]:
    return [grant.chunk for grant in grants]


async def test_an_emptied_server_is_a_lost_queue(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=range(10))
    [grant] = await lease(queue)
    await redis.flushall()
    with pytest.raises(QueueLost):
        await lease(queue)
    with pytest.raises(QueueLost):
        await queue.complete(JOB, chunk=grant.chunk, token=grant.token)
    await queue.load(JOB, epoch=2, chunks=range(10))
    with pytest.raises(LeaseLost):
        await queue.complete(JOB, chunk=grant.chunk, token=grant.token)


async def test_sequences_go_on_where_the_server_forgot_the_last_ones(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=range(10))
    [first] = await lease(queue)
    meta = f"tandemn:{{{JOB}}}:meta"
    saved = await redis.hget(meta, "sequence")
    [forgotten] = await lease(queue)
    await redis.hset(meta, "sequence", saved)
    [later] = await lease(queue)
    assert first.token < forgotten.token < later.token


async def test_leases_end_by_the_servers_time(queue: RedisQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=[0])
    [grant] = await lease(queue, lease_ms=1)
    again: list[Grant] = []
    while not again:
        await asyncio.sleep(0.002)
        again = await lease(queue)
    assert again[0].regrant
    assert again[0].token > grant.token


async def test_kill_and_restart_keep_what_was_answered(server: tuple[EmbeddedRedis, RedisProcess]) -> None:
    embedded, process = server
    queue = RedisQueue(process.url)
    await queue.load(JOB, epoch=1, chunks=range(100))
    before = await queue.run_id()
    grants = await lease(queue, 10)
    await asyncio.gather(*(queue.complete(JOB, chunk=g.chunk, token=g.token) for g in grants[:5]))
    os.kill(process.pid, signal.SIGKILL)
    psutil.Process(process.pid).wait(5)
    with pytest.raises(QueueUnavailable) as raised:
        await queue.counts(JOB, epoch=1)
    assert raised.value.code == "queue_unavailable"
    assert raised.value.next_step
    embedded.start_or_adopt()
    assert await queue.run_id() != before
    assert sorted(await queue.held(JOB, epoch=1)) == list(range(5, 100))
    await queue.complete(JOB, chunk=5, token=grants[5].token)
    assert (await lease(queue))[0].token > grants[-1].token
    await queue.aclose()


async def test_an_idle_connection_survives_a_restart(server: tuple[EmbeddedRedis, RedisProcess]) -> None:
    queue = RedisQueue(server[1].url)
    await queue.load(JOB, epoch=1, chunks=range(3))
    await asyncio.to_thread(server[0].stop)
    await asyncio.to_thread(server[0].start_or_adopt)
    assert (await queue.counts(JOB, epoch=1)).pending == 3
    await queue.aclose()


async def test_more_waiting_calls_than_the_limit_are_refused(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_lane, "WAITING", 5)
    answers = await asyncio.gather(*(queue.ping() for _ in range(8)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None)] * 5 + [QueueUnavailable] * 3


async def test_a_server_that_hangs_is_unavailable_and_comes_back(
    server: tuple[EmbeddedRedis, RedisProcess],
) -> None:
    queue = RedisQueue(server[1].url, timeout_s=0.2)
    await queue.load(JOB, epoch=1, chunks=range(10))
    os.kill(server[1].pid, signal.SIGSTOP)
    try:
        with pytest.raises(QueueUnavailable):
            await queue.ping()
    finally:
        os.kill(server[1].pid, signal.SIGCONT)
    assert (await queue.counts(JOB, epoch=1)).pending == 10
    await queue.aclose()


async def test_forgotten_scripts_are_sent_again(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=range(100))
    for _ in range(2):
        await redis.script_flush()
        grants = await asyncio.gather(*(lease(queue) for _ in range(20)))
        await asyncio.gather(*(queue.complete(JOB, chunk=g.chunk, token=g.token) for [g] in grants))
    assert (await queue.counts(JOB, epoch=1)).pending == 60


async def test_a_full_server_says_so_and_changes_nothing(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=range(100))
    [grant] = await lease(queue)
    await redis.config_set("maxmemory", 1)
    with pytest.raises(QueueUnavailable, match="raise the server's maxmemory"):
        await queue.load(JOB, epoch=2, chunks=range(3))
    assert chunks_of(await lease(queue)) == [1], "the work that is there goes on"
    await queue.complete(JOB, chunk=grant.chunk, token=grant.token)
    await redis.config_set("maxmemory", 0)
    assert sorted(await queue.held(JOB, epoch=1)) == list(range(1, 100))


async def test_a_read_only_replica_says_so(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=range(3))
    await redis.replicaof("127.0.0.1", "1")
    with pytest.raises(QueueUnavailable, match="primary"):
        await lease(queue)
    await redis.replicaof("NO", "ONE")
    assert len(await lease(queue)) == 1


async def test_a_caller_that_is_cancelled_does_not_disturb_the_others(queue: RedisQueue) -> None:
    await queue.load(JOB, epoch=1, chunks=range(100))
    calls = [asyncio.create_task(lease(queue)) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError, list] * 10
    assert (await queue.counts(JOB, epoch=1)).leased == 20


async def test_big_loads_are_whole_or_not_at_all(queue: RedisQueue, redis: Redis) -> None:
    await queue.load(JOB, epoch=1, chunks=[7])
    big = range(40 * LOAD_PART + 1)
    slow = asyncio.create_task(queue.load(JOB, epoch=2, chunks=big))
    while not await redis.exists(f"tandemn:{{{JOB}}}:staging"):
        await asyncio.sleep(0)
    slow.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await slow
    assert await queue.held(JOB, epoch=1) == [7], "a loader that died left the old queue"
    assert await redis.pttl(f"tandemn:{{{JOB}}}:staging") > 0, "and what it left ends by itself"
    await queue.load(JOB, epoch=2, chunks=big)
    assert await queue.held(JOB, epoch=2) == list(big)
    assert await redis.pttl(f"tandemn:{{{JOB}}}:pending") == -1
    await queue.lease(JOB, epoch=2, holder="a", limit=3, lease_ms=1000)
    await queue.drop(JOB)
    assert await redis.dbsize() == 0


async def test_of_two_loads_at_a_time_one_wins_whole(queue: RedisQueue) -> None:
    low, high = range(3 * LOAD_PART), range(10**6, 10**6 + 3 * LOAD_PART)
    loads = (queue.load(JOB, epoch=1, chunks=low), queue.load(JOB, epoch=1, chunks=high))
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    assert sorted(map(type, outcomes), key=str) == sorted([type(None), QueueLost], key=str)
    assert await queue.held(JOB, epoch=1) == list(low if outcomes[0] is None else high)


async def test_a_lost_reply_of_complete_is_reported_not_repeated(
    server: tuple[EmbeddedRedis, RedisProcess],
) -> None:
    direct = RedisQueue(server[1].url)
    await direct.load(JOB, epoch=1, chunks=range(3))
    [grant] = await lease(direct)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass everything on to Redis, and cut the line instead of passing on the answer to `complete`."""
        up_reader, up_writer = await asyncio.open_unix_connection(server[1].socket)
        with contextlib.closing(writer), contextlib.closing(up_writer):
            while request := await reader.read(1 << 16):
                up_writer.write(request)
                answer = await up_reader.read(1 << 16)
                if b"EVALSHA" in request and not answer.startswith(b"-NOSCRIPT"):
                    return
                writer.write(answer)

    socket = f"{server[1].socket}.deaf"
    async with await asyncio.start_unix_server(deaf, socket):
        queue = RedisQueue(f"unix://{socket}")
        with pytest.raises(QueueUnavailable):
            await queue.complete(JOB, chunk=0, token=grant.token)
        assert await direct.held(JOB, epoch=1) == [1, 2], "it was carried out, once"
        await queue.aclose()
    with pytest.raises(LeaseLost):
        await direct.complete(JOB, chunk=0, token=grant.token)
    await direct.aclose()


async def test_nobody_there_is_unavailable() -> None:
    queue = RedisQueue("unix:///nonexistent/redis.sock")
    calls = (queue.ping(), queue.counts(JOB, epoch=1), lease(queue))
    assert {type(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)} == {
        QueueUnavailable
    }
    await queue.aclose()


async def test_closing_ends_the_calls_under_way(server: tuple[EmbeddedRedis, RedisProcess]) -> None:
    queue = RedisQueue(server[1].url)
    os.kill(server[1].pid, signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(queue.ping()) for _ in range(3)]
        await asyncio.sleep(0.05)
        await queue.aclose()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        os.kill(server[1].pid, signal.SIGCONT)
    assert {type(answer) for answer in answers} == {QueueUnavailable}

"""(c) The chunk queue: lease+complete pairs a second, durable.

Each caller leases one chunk and completes it, again and again, through `RedisQueue` on an embedded
redis-server with `appendfsync always`. CPU time per pair is the figure to compare on a busy machine: wall
time there measures the neighbours. Redis's own CPU time is counted apart.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import uvloop

from tandemn.batch.redis_queue import RedisQueue
from tandemn.control.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from tandemn.control.embedded_redis import RedisProcess

JOB = "benchmark"
CHUNKS, CALLERS = 100_000, 32
TARGET_PER_S = 5000


async def measure(redis: RedisProcess, *, chunks: int, callers: int, epoch: int) -> dict[str, float]:
    queue = RedisQueue(redis.url)
    began = time.perf_counter()
    await queue.load(JOB, epoch=epoch, chunks=range(chunks))
    load_s = time.perf_counter() - began

    async def caller(name: str) -> int:
        done = 0
        while grants := await queue.lease(JOB, epoch=epoch, holder=name, limit=1, lease_ms=60_000):
            for grant in grants:
                await queue.complete(JOB, chunk=grant.chunk, token=grant.token)
                done += 1
        return done

    cpu, redis_cpu, began = time.process_time(), cpu_of(redis), time.perf_counter()
    done = await asyncio.gather(*(caller(f"r{i}") for i in range(callers)))
    wall_s = time.perf_counter() - began
    cpu_s, redis_cpu_s = time.process_time() - cpu, cpu_of(redis) - redis_cpu
    assert sum(done) == chunks, "every chunk once"
    assert await queue.held(JOB, epoch=epoch) == []
    await queue.drop(JOB)
    await queue.aclose()
    return {
        "callers": callers,
        "chunks": chunks,
        "pairs_per_s": round(chunks / wall_s),
        "python_cpu_us_per_pair": round(cpu_s / chunks * 1e6, 1),
        "redis_cpu_us_per_pair": round(redis_cpu_s / chunks * 1e6, 1),
        "load_s": round(load_s, 3),
    }


def cpu_of(redis: RedisProcess) -> float:
    times = psutil.Process(redis.pid).cpu_times()
    return times.user + times.system


def run(folder: Path, *, chunks: int = CHUNKS, callers: int = CALLERS) -> dict[str, dict[str, float]]:
    """Measure with many callers, and with one."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        server = EmbeddedRedis(Path(home))
        try:
            redis = server.start_or_adopt()
            many = uvloop.run(measure(redis, chunks=chunks, callers=callers, epoch=1))
            single = uvloop.run(measure(redis, chunks=max(1, chunks // 20), callers=1, epoch=2))
        finally:
            server.stop()
    return {"in_flight": many, "single": single}

"""Redis and memory queue, driven by the same operations, must give the same answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.redis_server import redis_executables, redis_server

from tandemn.batch.memory_queue import MemoryQueue
from tandemn.batch.queue import Token
from tandemn.batch.redis_queue import RedisQueue
from tandemn.clock import MockClock
from tandemn.errors import TandemnError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tandemn.batch.queue import ChunkQueue

HOLDERS = st.sampled_from(["r0", "r1", "r2:with:colons", "r3 ünï\ncode"])
CHUNKS = st.integers(min_value=0, max_value=12)
LEASE_MS = st.sampled_from([1, 1000, 5000])
JOB = "job"


class Queues(RuleBasedStateMachine):
    """Both queues and what a control plane would remember: the epoch, and every token ever given."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.clock = MockClock(start=1_800_000_000.0)
        self.loop = asyncio.Runner()
        self.memory = MemoryQueue(self.clock)
        self.redis = RedisQueue(self.url, clock=self.clock)
        self.loop.run(self.redis.drop(JOB))
        self.epoch = 1
        self.tokens: list[tuple[int, Token]] = []
        self.lowest_epoch = 0
        self.completed: set[int] = set()

    def teardown(self) -> None:
        self.loop.run(self.redis.aclose())
        self.loop.close()

    def both(self, ask: Callable[[ChunkQueue], Coroutine[Any, Any, Any]]) -> Any:
        memory, redis = (self.loop.run(_outcome(ask(queue))) for queue in (self.memory, self.redis))
        assert memory == redis
        return memory

    def a_token(self, data: st.DataObject) -> tuple[int, Token]:
        return data.draw(st.sampled_from(self.tokens), label="token")

    @initialize(chunks=st.lists(CHUNKS, unique=True))
    def first_load(self, chunks: list[int]) -> None:
        assert self.both(lambda q: q.load(JOB, epoch=self.epoch, chunks=chunks)) is None

    @rule(chunks=st.lists(CHUNKS, unique=True), epoch_change=st.sampled_from([-1, 0, 1, 1, 3]))
    def load(self, chunks: list[int], epoch_change: int) -> None:
        epoch = max(self.lowest_epoch, self.epoch + epoch_change)
        if self.both(lambda q: q.load(JOB, epoch=epoch, chunks=chunks)) is None:
            self.epoch = epoch
            self.completed = set()

    @rule(holder=HOLDERS, limit=st.integers(0, 4), lease_ms=LEASE_MS, steal=st.booleans())
    def lease(self, holder: str, limit: int, lease_ms: int, steal: bool) -> None:
        grants = self.both(
            lambda q: q.lease(
                JOB, epoch=self.epoch, holder=holder, limit=limit, lease_ms=lease_ms, steal=steal
            )
        )
        if isinstance(grants, tuple):
            return
        for grant in grants:
            assert all(grant.token > token for _, token in self.tokens), "a token was given twice"
            assert grant.chunk not in self.completed, "a completed chunk was given again"
            self.tokens.append((grant.chunk, grant.token))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        chunk, token = self.a_token(data)
        self.both(lambda q: q.begin(JOB, chunk=chunk, token=token))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), shift=st.sampled_from([0, 0, 0, 1]))
    def complete(self, data: st.DataObject, shift: int) -> None:
        chunk, token = self.a_token(data)
        if self.both(lambda q: q.complete(JOB, chunk=chunk + shift, token=token)) is None:
            newest = max(other for of, other in self.tokens if of == chunk)
            assert token == newest, "a lease that was taken away completed its chunk"
            self.completed.add(chunk)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        chunk, token = self.a_token(data)
        self.both(lambda q: q.release(JOB, chunk=chunk, token=token))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), holder=HOLDERS, lease_ms=LEASE_MS)
    def renew(self, data: st.DataObject, holder: str, lease_ms: int) -> None:
        tokens = dict(data.draw(st.lists(st.sampled_from(self.tokens), max_size=5), label="tokens"))
        self.both(lambda q: q.renew(JOB, holder=holder, tokens=tokens, lease_ms=lease_ms, epoch=self.epoch))

    @rule(holder=HOLDERS)
    def revoke(self, holder: str) -> None:
        self.both(lambda q: q.revoke(JOB, epoch=self.epoch, holder=holder))

    @rule(epoch_change=st.sampled_from([-1, 1]), holder=HOLDERS)
    def ask_with_another_epoch(self, epoch_change: int, holder: str) -> None:
        epoch = self.epoch + epoch_change
        lease = self.both(lambda q: q.lease(JOB, epoch=epoch, holder=holder, limit=1, lease_ms=1))
        revoke = self.both(lambda q: q.revoke(JOB, epoch=epoch, holder=holder))
        renew = self.both(lambda q: q.renew(JOB, epoch=epoch, holder=holder, tokens={}, lease_ms=1))
        complete = self.both(lambda q: q.complete(JOB, chunk=0, token=Token(epoch, 1)))
        assert {lease[0], revoke[0], renew[0]} == {"queue_lost"}
        assert complete[0] in {"queue_lost", "lease_lost"}

    @rule(ms=st.sampled_from([1, 999, 1000, 7000]))
    def wait(self, ms: int) -> None:
        self.clock.advance(ms / 1000)

    @rule()
    def look(self) -> None:
        self.both(lambda q: q.counts(JOB, epoch=self.epoch))
        held = self.both(lambda q: _sorted(q.held(JOB, epoch=self.epoch)))
        if isinstance(held, list):
            assert not self.completed & set(held)

    @rule()
    def drop(self) -> None:
        self.both(lambda q: q.drop(JOB))
        # As the control plane does: a dropped job comes back with a higher epoch only.
        self.epoch = self.lowest_epoch = self.epoch + 1
        self.completed = set()


async def _outcome(call: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await call
    except TandemnError as error:
        return error.code, str(error)


async def _sorted(call: Coroutine[Any, Any, list[int]]) -> list[int]:
    return sorted(await call)


@pytest.mark.parametrize("executable", redis_executables(), ids=str)
def test_redis_and_memory_queue_are_one(executable: Path) -> None:
    with redis_server(executable) as (_, process):
        machine = type("QueuesHere", (Queues,), {"url": process.url})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=100,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

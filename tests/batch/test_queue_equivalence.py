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
from redis import Redis
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
WAIT_MS = st.sampled_from([0, 0, 1, 999, 1000, 7000])
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
        return data.draw(st.sampled_from(self.tokens[-10:]), label="token")

    @initialize(chunks=st.lists(CHUNKS, unique=True, min_size=3))
    def first_load(self, chunks: list[int]) -> None:
        assert self.both(lambda q: q.load(JOB, epoch=self.epoch, chunks=chunks)) is None

    @rule(
        wait_ms=WAIT_MS,
        holder=HOLDERS,
        limit=st.sampled_from([0, 1, 2, 8]),
        lease_ms=LEASE_MS,
        steal=st.booleans(),
    )
    def lease(self, wait_ms: int, holder: str, limit: int, lease_ms: int, steal: bool) -> None:
        self.clock.advance(wait_ms / 1000)
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

    @rule(thief=HOLDERS)
    def take_all_and_steal(self, thief: str) -> None:
        """Equal shares first: chance alone seldom makes two holders that are equally rich."""
        for holder, limit in (("r0", 2), ("r1", 2), (thief, 20), (thief, 1), (thief, 1)):
            self.lease(wait_ms=0, holder=holder, limit=limit, lease_ms=5000, steal=True)

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
        tokens = dict(data.draw(st.lists(st.sampled_from(self.tokens[-10:]), max_size=5), label="tokens"))
        self.both(lambda q: q.renew(JOB, holder=holder, tokens=tokens, lease_ms=lease_ms, epoch=self.epoch))

    @rule(holder=HOLDERS)
    def revoke(self, holder: str) -> None:
        self.both(lambda q: q.revoke(JOB, epoch=self.epoch, holder=holder))

    @rule()
    def look(self) -> None:
        self.both(lambda q: q.counts(JOB, epoch=self.epoch))
        held = self.both(lambda q: _sorted(q.held(JOB, epoch=self.epoch)))
        if isinstance(held, list):
            assert not self.completed & set(held)

    # One rule for what upsets everything, so that most steps are ordinary work.
    @rule(data=st.data())
    def upset(self, data: st.DataObject) -> None:
        match data.draw(st.sampled_from(["load", "drop", "another epoch"]), label="upset"):
            case "load":
                chunks = data.draw(st.lists(CHUNKS, unique=True), label="chunks")
                self.load(chunks, data.draw(st.sampled_from([-1, 0, 1, 3]), label="epoch change"))
            case "drop":
                self.drop()
            case _:
                self.ask_with_another_epoch(data.draw(st.sampled_from([-1, 1]), label="epoch change"))

    def load(self, chunks: list[int], epoch_change: int) -> None:
        epoch = max(self.lowest_epoch, self.epoch + epoch_change)
        if self.both(lambda q: q.load(JOB, epoch=epoch, chunks=chunks)) is None:
            self.epoch = epoch
            self.completed = set()

    def ask_with_another_epoch(self, epoch_change: int) -> None:
        epoch, holder = self.epoch + epoch_change, "r0"
        lease = self.both(lambda q: q.lease(JOB, epoch=epoch, holder=holder, limit=1, lease_ms=1))
        revoke = self.both(lambda q: q.revoke(JOB, epoch=epoch, holder=holder))
        renew = self.both(lambda q: q.renew(JOB, epoch=epoch, holder=holder, tokens={}, lease_ms=1))
        complete = self.both(lambda q: q.complete(JOB, chunk=0, token=Token(epoch, 1)))
        assert {lease[0], revoke[0], renew[0]} == {"queue_lost"}
        assert complete[0] in {"queue_lost", "lease_lost"}

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
        with Redis(unix_socket_path=process.socket) as client:
            client.config_set("appendonly", "no")  # a sync at every step tells nothing of the rules
        machine = type("QueuesHere", (Queues,), {"url": process.url})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=120,
                stateful_step_count=40,
                suppress_health_check=list(HealthCheck),
            ),
        )

"""The chunk table in SQL and in memory, driven by the same operations, must give the same answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tandemn.batch.chunk_table import ChunkResult, ChunkRow, MemoryChunkTable
from tandemn.batch.queue import Token
from tandemn.clock import MockClock
from tandemn.control.store import chunks, jobs
from tandemn.control.store.chunk_table import SqlChunkTable
from tandemn.protocol.jobs import JobSpec, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import Connection

    from tandemn.batch.chunk_table import ChunkTable
    from tandemn.control.store.database import Database

JOB = "job-x"
CHUNKS = 6
HOLDERS = st.sampled_from(["r0", "r1", "r2"])


def add_job(connection: Connection, *, now: float) -> None:
    spec = JobSpec(model="m", slo_s=60, input_file_id="file-x")
    jobs.add(connection, job_id=JOB, spec=spec, now=now, input_object="files/x", cloud="local")
    jobs.change(connection, JOB, state=JobState.RUNNING.value)
    row = {"byte_start": 0, "byte_end": 0, "first_request": 0, "requests": 3, "skipped": None}
    chunks.replace_all(connection, JOB, ({"chunk": chunk, **row} for chunk in range(CHUNKS)))


def clear(connection: Connection) -> None:
    from tandemn.control.store.schema import metadata

    for table in reversed(metadata.sorted_tables):
        connection.execute(table.delete())


class Tables(RuleBasedStateMachine):
    """Both tables; every token that was ever recorded, and some that never were."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        clock = MockClock()
        self.loop = asyncio.Runner()
        self.memory = MemoryChunkTable()
        self.memory.add_job(JOB, [ChunkRow(chunk=chunk, requests=3) for chunk in range(CHUNKS)])
        self.sql = SqlChunkTable(self.database, clock)
        self.database.run_sync(clear)
        self.database.run_sync(add_job, now=clock.now())
        self.epoch = 0
        self.sequence = 0
        self.tokens: list[tuple[int, Token]] = []
        self.is_sealed = False

    def teardown(self) -> None:
        self.loop.close()

    def both(self, ask: Callable[[ChunkTable], Coroutine[Any, Any, Any]]) -> Any:
        memory, sql = (self.loop.run(ask(table)) for table in (self.memory, self.sql))
        assert memory == sql
        return memory

    @initialize()
    def begin(self) -> None:
        self.bump(frm_shift=0)

    @rule(frm_shift=st.sampled_from([0, 0, -1, 1]))
    def bump(self, frm_shift: int) -> None:
        frm = self.epoch + frm_shift
        bumped = self.both(lambda table: table.bump_epoch(JOB, frm=frm, reason="test"))
        assert (bumped is not None) == (frm_shift == 0 and not self.is_sealed)
        self.epoch = bumped if bumped is not None else self.epoch

    @rule(
        holder=HOLDERS,
        wanted=st.sets(st.integers(0, CHUNKS - 1), min_size=1),
        epoch_shift=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def grant(self, holder: str, wanted: set[int], epoch_shift: int) -> None:
        grants = []
        for chunk in sorted(wanted):
            self.sequence += 1
            grants.append((chunk, Token(self.epoch + epoch_shift, self.sequence)))
        granted = self.both(lambda table: table.grant(JOB, holder=holder, grants=grants))
        assert not granted or epoch_shift == 0
        self.tokens += grants

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), holder=HOLDERS, failed=st.integers(0, 3), shift=st.sampled_from([0, 0, 0, 1]))
    def complete(self, data: st.DataObject, holder: str, failed: int, shift: int) -> None:
        chunk, token = data.draw(st.sampled_from(self.tokens[-8:]))
        result = ChunkResult(completed=3 - failed, failed=failed)
        at = (chunk + shift) % CHUNKS
        self.both(lambda table: table.complete(JOB, chunk=at, token=token, holder=holder, result=result))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        chunk, token = data.draw(st.sampled_from(self.tokens[-8:]))
        self.both(lambda table: table.give_back(JOB, chunk=chunk, token=token))

    @rule(holder=HOLDERS)
    def take_back(self, holder: str) -> None:
        self.both(lambda table: table.take_back(JOB, holder=holder))

    @rule()
    def look(self) -> None:
        self.both(lambda table: table.epoch(JOB))
        self.both(lambda table: table.unfinished(JOB))

    @precondition(lambda self: not self.is_sealed)
    @rule(chance=st.integers(0, 9))
    def seal(self, chance: int) -> None:
        if chance:
            return
        self.memory.seal(JOB)
        sealed = self.database.run_sync(
            jobs.seal, JOB, outcome=JobState.CANCELLED, now=1.0, reason="the test seals it"
        )
        assert sealed
        self.is_sealed = True
        self.epoch += 1


def test_the_tables_are_one(database):
    machine = type("TablesHere", (Tables,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_what_a_holder_had_is_kept_for_the_next_and_only_its_own_word_counts(database):
    clock = MockClock()
    database.run_sync(add_job, now=clock.now())
    database.run_sync(jobs.bump_epoch, JOB, frm=0, now=1.0, reason="test")
    first, second = Token(1, 1), Token(1, 2)
    database.run_sync(chunks.grant, JOB, holder="r0", grants=[(0, first)])
    report = {"chunk": 0, "computed": 2, "recomputed": 0}
    database.run_sync(chunks.report_progress, JOB, token=str(first), **report)
    granted = database.run_sync(chunks.grant, JOB, holder="r1", grants=[(0, second)])
    assert (granted[0].computed, granted[0].recomputed, granted[0].grants) == (2, 0, 2)
    # The first one wakes up: what it says now is not what the next holder finds.
    database.run_sync(chunks.report_progress, JOB, token=str(first), chunk=0, computed=3, recomputed=0)
    # The second one found one answer of the two.
    database.run_sync(chunks.report_progress, JOB, token=str(second), chunk=0, computed=1, recomputed=1)
    row = database.run_sync(chunks.get, JOB, 0)
    assert row is not None
    assert (row.computed, row.recomputed) == (1, 1)
    result = ChunkResult(completed=3, failed=0, recomputed=1)
    assert database.run_sync(chunks.complete, JOB, chunk=0, token=second, result=result)
    assert database.run_sync(chunks.totals, JOB).recomputed == 1


def test_a_death_is_counted_once_however_often_it_is_reported(database):
    database.run_sync(add_job, now=1.0)
    report = {0: [1, 2]}
    for death, counts in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        found = database.run_sync(chunks.add_strikes, JOB, report, death_id=death)
        assert found == {0: {1: counts, 2: counts}}
    assert database.run_sync(chunks.strikes_of, JOB, [0, 1]) == {0: {1: 2, 2: 2}, 1: {}}

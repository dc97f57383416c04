"""Transactions that read and then write, beside each other: on either database none of them loses another's work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tandemn.batch.chunk_table import ChunkResult
from tandemn.batch.queue import Token
from tandemn.control.store import chunks, events, jobs, replicas
from tandemn.errors import InvalidInput
from tandemn.events import EventKind
from tandemn.protocol.jobs import JobSpec, JobState, ReplicaConfig

if TYPE_CHECKING:
    from sqlalchemy import Connection

JOB = "job-x"
CHUNKS = 40


def add_job(connection: Connection) -> None:
    spec = JobSpec(model="m", slo_s=60, input_file_id="file-x")
    jobs.add(connection, job_id=JOB, spec=spec, now=0.0, input_object="files/x", cloud="local")
    groups = [{"config": ReplicaConfig().model_dump(mode="json"), "wanted": 0}]
    jobs.change(connection, JOB, state=JobState.RUNNING.value, groups=groups, epoch=1)
    row = {"byte_start": 0, "byte_end": 0, "first_request": 0, "requests": 3, "skipped": None}
    chunks.replace_all(connection, JOB, ({"chunk": chunk, **row} for chunk in range(CHUNKS)))


@pytest.fixture
def two(new_database):
    """The connections of two control planes."""
    pair = new_database(), new_database()
    pair[0].run_sync(add_job)
    return pair


def at_once(*calls):
    """Run all of them from one moment on, each in a thread; return what they return."""
    gate = threading.Barrier(len(calls))

    def begin(call):
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(begin, calls))


def want_more(connection: Connection) -> None:
    """As `tandemn add` does: read, reckon, write."""
    groups = [dict(group) for group in jobs.get(connection, JOB).groups]
    groups[0]["wanted"] += 1
    jobs.change(connection, JOB, groups=groups)
    replicas.request(
        connection,
        JOB,
        group=0,
        config=ReplicaConfig(),
        launcher="local",
        count=1,
        now=0.0,
        reason="test",
    )


def test_no_change_is_lost_between_read_and_write(two):
    times = 15

    def some(database):
        return lambda: [database.run_sync(want_more) for _ in range(times)]

    at_once(*[some(database) for database in two for _ in range(2)])
    total = 4 * times
    assert two[0].run_sync(jobs.get, JOB).groups[0]["wanted"] == total
    names = [each.name for each in two[0].run_sync(replicas.of_job, JOB)]
    assert sorted(names) == sorted(f"r{number}" for number in range(total))


def test_nothing_is_completed_once_the_job_is_sealed(two):
    """The seal reads what is done, and assembly believes it: a completion beside it stands before it, or not at all."""
    tokens = [Token(1, chunk + 1) for chunk in range(CHUNKS)]
    two[0].run_sync(chunks.grant, JOB, holder="r0", grants=list(enumerate(tokens)))

    def seal(connection: Connection) -> int:
        assert jobs.seal(connection, JOB, outcome=JobState.CANCELLED, now=1.0, reason="test")
        return chunks.totals(connection, JOB).done

    some_done = threading.Event()

    def complete():
        result = ChunkResult(completed=3, failed=0)
        done = 0
        for chunk, token in enumerate(tokens):
            done += bool(two[1].run_sync(chunks.complete, JOB, chunk=chunk, token=token, result=result))
            if done == CHUNKS // 4:
                some_done.set()
        return done

    def seal_soon():
        assert some_done.wait(30)
        return two[0].run_sync(seal)

    sealed_with, counted = at_once(seal_soon, complete)
    assert 0 < sealed_with == counted == two[0].run_sync(chunks.totals, JOB).done


def test_of_two_that_take_the_same_step_one_wins(two):
    def start(database):
        def move(connection: Connection) -> bool:
            if jobs.get(connection, JOB).state is not JobState.RUNNING:
                return False
            jobs.change(connection, JOB, state=JobState.CANCELLING.value)
            events.append(connection, EventKind.JOB_STATE, now=0.0, job_id=JOB)
            return True

        return lambda: database.run_sync(move)

    assert sorted(at_once(*[start(database) for database in two for _ in range(3)])) == [False] * 5 + [True]
    assert len(two[0].run_sync(events.of_kinds, [EventKind.JOB_STATE], job_id=JOB)) == 1


def test_text_that_one_database_refuses_is_kept_by_both(database):
    database.run_sync(add_job)
    database.run_sync(jobs.change, JOB, reason="the log said \0 and ended", line_errors=[{"message": "\0"}])
    kept = database.run_sync(jobs.get, JOB)
    assert kept.reason.replace("\N{REPLACEMENT CHARACTER}", "\0") == "the log said \0 and ended"
    assert kept.line_errors == [{"message": "\0"}]


def test_a_value_that_does_not_fit_is_the_callers_fault(database):
    """SQLite holds any; PostgreSQL says no, which must not look like our own fault."""
    database.run_sync(add_job)
    if database.is_sqlite:
        assert database.run_sync(chunks.get, JOB, 2**40) is None
        return
    with pytest.raises(InvalidInput) as caught:
        database.run_sync(chunks.get, JOB, 2**40)
    assert caught.value.code == "invalid_value"

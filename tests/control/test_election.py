"""Who leads, decided from what is recorded and seen; then several of them on one real database."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandemn.clock import SystemClock
from tandemn.control import leadership as module
from tandemn.control.election import HOLD_S, LEASE_S, Seat, Sighting, Step, decide, watch
from tandemn.control.leadership import Leadership, this_process, while_leading
from tandemn.control.store import events
from tandemn.errors import Superseded
from tandemn.events import EventKind
from tandemn.processes import start_time

#: Short enough to wait for, long enough for a busy machine: a lease is beaten five times over.
LEASE = 2.0


@pytest.mark.parametrize(
    ("holder", "sighting", "step"),
    [
        (None, None, Step.CLAIM),
        ("me", Sighting(beat=1, since=0.0), Step.LEAD),
        ("other", None, Step.CLAIM),
        ("other", Sighting(beat=1, since=100.0 - LEASE_S), Step.FOLLOW),
        ("other", Sighting(beat=1, since=99.9 - LEASE_S), Step.CLAIM),
        ("other", Sighting(beat=1, since=100.0, is_dead=True), Step.CLAIM),
    ],
)
def test_the_seat_is_taken_where_nobody_holds_it_and_from_whom_is_silent(holder, sighting, step):
    verdict = decide(Seat(term=3, holder=holder), me="me", holder=sighting, now=100.0)
    assert verdict.step is step
    assert verdict.reason


@settings(max_examples=300)
@given(
    beats=st.lists(st.floats(0.01, 30.0), min_size=1, max_size=30),
    looks=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=200),
    offset=st.floats(-1e6, 1e6),
    slow=st.floats(0.0, 1.0),
)
def test_a_leader_never_trusts_its_seat_when_another_may_take_it(beats, looks, offset, slow):
    """Beats come at any pace and take effect late; the observer's clock is set otherwise and looks when it likes."""
    at, recorded = 0.0, []
    for pause in beats:
        at += pause
        recorded.append((at, at + slow))  # began, took effect
    trusted_until, seen, at = 0.0, None, 0.0
    for pause in looks:
        at += pause
        done = [began for began, effective in recorded if effective <= at]
        if not done:
            continue
        trusted_until = done[-1] + HOLD_S
        seen = watch(seen, len(done), is_dead=False, now=at + offset)
        verdict = decide(Seat(term=1, holder="leader"), me="me", holder=seen, now=at + offset)
        if verdict.step is Step.CLAIM:
            assert at > trusted_until
            return


def candidate(database, **changes):
    me = replace(this_process("http://127.0.0.1:1"), **changes)
    return Leadership(database, me, SystemClock(), lease_s=LEASE)


async def until(condition, patience_s=20.0):
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_one_leads_and_another_follows_at_once_when_it_resigns(database):
    first, second = candidate(database), candidate(database)
    await first.beat()
    await second.beat()
    assert (first.term, second.term) == (1, None)
    assert second.leader is not None
    assert second.leader.server_id == first.me.server_id
    assert [each.server_id for each in second.members] == [second.me.server_id, first.me.server_id]
    with pytest.raises(Superseded):
        second.assert_leading()
    await first.resign()
    with pytest.raises(Superseded):
        first.assert_leading()
    await second.beat()
    assert second.term == 2
    assert second.members == [second.me]
    told = await database.run(events.of_kinds, [EventKind.LEADER_ELECTED])
    assert [(each.data["server_id"], each.data["term"]) for each in told] == [
        (first.me.server_id, 1),
        (second.me.server_id, 2),
    ]


async def test_a_process_of_this_machine_that_is_gone_is_replaced_at_the_next_beat(database):
    gone = candidate(database, started=start_time(os.getpid()) - 100)
    await gone.beat()
    assert gone.is_leading
    heir = candidate(database)
    await heir.beat()
    assert heir.term == 2


async def test_one_on_another_machine_is_replaced_when_its_lease_is_over_and_refuses_itself_before(database):
    silent = candidate(database, host="elsewhere", pid=1)
    await silent.beat()
    fence = silent.fence(1)
    heir = candidate(database)
    beating = asyncio.create_task(heir.run())
    try:
        await until(lambda: not silent.is_leading)
        assert not heir.is_leading
        await database.run(fence)
        await until(lambda: heir.is_leading)
        with pytest.raises(Superseded) as caught:
            await database.run(fence)
        assert caught.value.code == "not_leading"
        # It wakes up: it does not take the seat back, and learns that it lost it.
        await silent.beat()
        assert silent.term is None
        assert heir.is_leading
    finally:
        beating.cancel()


async def test_the_silent_are_forgotten_by_the_one_that_leads(database, monkeypatch):
    monkeypatch.setattr(module, "FORGET_LEASES", 1.0)
    lost = candidate(database, host="elsewhere", pid=1)
    leader = candidate(database)
    await leader.beat()
    await lost.beat()
    beating = asyncio.create_task(leader.run())
    try:
        await until(lambda: len(leader._members) == 2)
        await until(lambda: len(leader._members) == 1)
    finally:
        beating.cancel()


async def test_a_leader_whose_beat_came_too_late_leads_on_where_nobody_took_its_seat(database):
    one = candidate(database)
    await one.beat()
    term = one.term
    await until(lambda: not one.is_leading)
    waiting = asyncio.create_task(one.elected())
    await asyncio.sleep(0)
    assert not waiting.done()
    await one.beat()
    assert await asyncio.wait_for(waiting, 10) == term


async def test_a_beat_that_fails_is_not_the_last(database, monkeypatch):
    one = candidate(database)
    faults = iter([RuntimeError("whatever it is")])
    beat = one.beat

    async def falters():
        if fault := next(faults, None):
            raise fault
        await beat()

    monkeypatch.setattr(one, "beat", falters)
    beating = asyncio.create_task(one.run())
    try:
        assert await asyncio.wait_for(one.elected(), 10)
        assert one.faults == 1
    finally:
        beating.cancel()


class Task:
    """A leader's task that writes its term, as fast as it can, through its fence."""

    def __init__(self, database, term, log, fault=None):
        self.database, self.term, self.log, self.fault = database, term, log, fault
        self.halted = False

    async def run(self):
        if self.fault and self.fault.pop():
            raise ZeroDivisionError
        while not self.halted:
            await self.database.run(lambda _: self.log.append(self.term))
            await asyncio.sleep(0)

    async def halt(self):
        self.halted = True


async def test_tasks_run_under_one_term_at_a_time_and_survive_their_own_faults(database):
    log: list[int] = []
    fault = [False, False, True]

    def crew(one):
        return lambda term: [Task(database.fenced(one.fence(term)), term, log, fault)]

    pair = [candidate(database), candidate(database)]
    leading = []
    for one in pair:
        await one.beat()
        leading += [asyncio.create_task(one.run()), asyncio.create_task(while_leading(one, crew(one)))]
    try:
        await until(lambda: 1 in log)
        assert pair[0].faults == 1
        for each in leading[:2]:
            each.cancel()
        await asyncio.gather(*leading[:2], return_exceptions=True)
        await pair[0].resign()
        await until(lambda: 2 in log)
    finally:
        for each in leading:
            each.cancel()
        await asyncio.gather(*leading, return_exceptions=True)
    assert log == sorted(log), "a task of an earlier term wrote after one of a later term"


def test_this_process_is_described_by_what_another_can_check():
    me = this_process("http://127.0.0.1:1")
    assert (me.pid, me.started) == (os.getpid(), start_time(os.getpid()))
    assert me.server_id != this_process("http://127.0.0.1:1").server_id

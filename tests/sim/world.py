"""A seeded world in simulated time: hundreds of replicas, and everything that can go wrong with them.

Real: the lease desk, the memory queue and table (each held equal to its twin by its own tests), the fleet
decision, the job's lifecycle. Simulated: machines, time, the wire and the store. The wire loses requests
before and replies after they took effect, and delivers twice; the store is slow; replicas are taken away
with and without notice, pause, and report late; the control plane and the queue forget and restart.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tandemn.batch import lifecycle
from tandemn.batch.chunk_table import ChunkResult, ChunkRow, MemoryChunkTable
from tandemn.batch.leases import Lease, LeaseDesk
from tandemn.batch.memory_queue import MemoryQueue
from tandemn.clock import MockClock
from tandemn.errors import Conflict, LeaseLost, QueueUnavailable, StoreUnavailable
from tandemn.fleet import reconcile
from tandemn.fleet.reconcile import Presence
from tandemn.fleet.replica import advance
from tandemn.protocol.jobs import JobState
from tandemn.protocol.replicas import Goodbye, Market, ReplicaState
from tandemn.runner.strikes import Treatment, treatment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

JOB = "job-sim"
LEASE_S = 12.0
HEARTBEAT_S = 5.0
FLUSH_S = 3.0
TICK_S = 1.0
#: Requests that an engine computes at a time.
TOGETHER = 4


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine that never really waits: memory queues and tables do not."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


@dataclass(frozen=True)
class Settings:
    """How large, and how bad, a world is. Rates are per second of simulated time."""

    replicas: int = 20
    chunks: int = 60
    requests: int = 20
    """Of each chunk."""
    kill_rate: float = 0.02
    """Of each replica: gone without notice."""
    notice_rate: float = 0.02
    pause_rate: float = 0.01
    lost_reply: float = 0.05
    """Of each call: it took effect, and the caller does not know."""
    lost_call: float = 0.05
    restart_rate: float = 0.01
    """Of the control plane."""
    flush_all_rate: float = 0.004
    """Of the queue: emptied."""
    fail_rate: float = 0.05
    """Of each launch: the replica fails before it computes."""
    store_fault: float = 0.05
    """Of each flush: the store refuses it."""
    poison: int = 0
    """Requests that kill the engine whenever it computes them."""
    faults_end_s: float = 400.0
    """From then on nothing goes wrong, so that every job can end."""


@dataclass
class Work:
    """A chunk at a replica."""

    lease: Lease
    granted_at: float
    begun: bool = False
    finished: dict[int, int] = field(default_factory=dict)
    """Request -> who computed it: what this holder knows."""
    unstored: set[int] = field(default_factory=set)
    strikes: dict[int, int] = field(default_factory=dict)
    """Request -> how often an engine died of it, as this holder knows."""
    convicted: set[int] = field(default_factory=set)


@dataclass
class Machine:
    """A replica as it really is; the control plane knows only what it is told."""

    replica_id: str
    alive: bool = True
    paused_until: float = 0.0
    booted_at: float = 0.0
    stopping: bool = False
    draining: bool = False
    work: list[Work] = field(default_factory=list)
    computed: int = 0
    speed: float = 4.0


class World:
    """One job from its first replica to its end."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed = seed
        self.settings = settings
        self.random = random.Random(seed)
        self.clock = MockClock(1_000_000.0)
        self.queue = MemoryQueue(self.clock)
        self.table = MemoryChunkTable()
        rows = [ChunkRow(chunk=i, requests=settings.requests) for i in range(settings.chunks)]
        self.table.add_job(JOB, rows)
        self.control_down_until = 0.0
        self.state = JobState.WAITING
        self.outcome: JobState | None = None
        self.cancelling_at: float | None = None
        self.records: dict[str, reconcile.Replica] = {}
        self.machines: dict[str, Machine] = {}
        self.names = itertools.count()
        # Two kinds from the start: fleets may be heterogeneous.
        self.wanted = [settings.replicas - settings.replicas // 4, settings.replicas // 4]
        self.swap_state: reconcile.Swap | None = None
        everything = [(row.chunk, request) for row in rows for request in range(row.requests)]
        self.poison = frozenset(self.random.sample(everything, settings.poison))
        self.strikes: dict[tuple[int, int], tuple[int, int]] = {}
        """(chunk, request) -> how often the control plane was told that an engine died of it, and the last death."""
        self.deaths = itertools.count()
        self.stored: dict[tuple[int, int], float] = {}
        """(chunk, request) -> when its answer became visible in the store."""
        self.objects: dict[tuple[int, str], frozenset[int]] = {}
        """(chunk, token) -> the answers of a finished chunk."""
        self.computed: Counter[tuple[int, int]] = Counter()
        self.counts: Counter[str] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._new_desk()
        for group, count in enumerate(self.wanted):
            for _ in range(count):
                self._request(group, 0.0)

    # -- running ---------------------------------------------------------------------------------------

    def go(self, limit_s: float = 4000.0) -> None:
        """Run until the job is sealed and every replica has ended."""
        start = self.now
        self.at(0, self._tick)
        while self._events and not self.over:
            when, _, event = heapq.heappop(self._events)
            self.clock.advance(max(0.0, when - self.now))
            assert self.now - start < limit_s, f"seed {self.seed}: no end after {limit_s} s"
            event()
        assert self.over, f"seed {self.seed}: nothing happens any more"

    @property
    def now(self) -> float:
        return self.clock.now()

    @property
    def over(self) -> bool:
        ended = all(record.state.has_ended for record in self.records.values())
        return self.state is JobState.ASSEMBLING and ended

    @property
    def calm(self) -> bool:
        return self.now - 1_000_000.0 > self.settings.faults_end_s

    def at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def chance(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    # -- the wire --------------------------------------------------------------------------------------

    def call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Call the control plane over a wire that loses and repeats. Raises ConnectionError."""
        if self.now < self.control_down_until or self.chance(self.settings.lost_call):
            raise ConnectionError("no answer")
        answer = run(make())
        if self.chance(self.settings.lost_reply):
            self.counts["lost replies"] += 1
            raise ConnectionError("the answer was lost")
        return answer

    # -- the control plane -----------------------------------------------------------------------------

    def _new_desk(self) -> None:
        self.desk = LeaseDesk(self.queue, self.table, lease_ms=round(LEASE_S * 1000))

    def _tick(self) -> None:
        self._faults()
        if self.now >= self.control_down_until:
            self._reconcile()
            self._move()
        self.at(TICK_S, self._tick)

    def _faults(self) -> None:
        if self.chance(self.settings.restart_rate):
            self.counts["restarts"] += 1
            self.control_down_until = self.now + self.random.uniform(0.5, 30)
            self._new_desk()
        if self.chance(self.settings.flush_all_rate):
            self.counts["queue emptied"] += 1
            self.queue.forget()
        for machine in list(self.machines.values()):
            if not machine.alive:
                continue
            if self.chance(self.settings.kill_rate):
                self.counts["killed"] += 1
                machine.alive = False
            elif self.chance(self.settings.notice_rate):
                self._stop(machine, "preempted")
            elif self.chance(self.settings.pause_rate):
                self.counts["paused"] += 1
                machine.paused_until = self.now + self.random.uniform(1, 60)

    def _reconcile(self) -> None:
        fleet = reconcile.Fleet(
            wanted=tuple(self.wanted),
            replicas=tuple(
                replace(record, presence=self._presence(record)) for record in self.records.values()
            ),
            swap=self.swap_state,
            needs_replicas=self.state in {JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING},
        )
        for action in reconcile.decide(fleet, self.now):
            self._apply(action)

    def _presence(self, record: reconcile.Replica) -> Presence:
        machine = self.machines.get(record.replica_id)
        return Presence.THERE if machine and machine.alive else Presence.GONE

    def _apply(self, action: reconcile.Action) -> None:
        match action:
            case reconcile.Start(replica_id=replica_id):
                self._change(replica_id, state=ReplicaState.LAUNCHING, launched_at=self.now)
                self._boot(replica_id)
            case reconcile.Order(replica_id=replica_id, orders=orders):
                self._change(replica_id, orders=orders, stopping_at=self.now)
                if orders == "stop":
                    self._stop(self.machines[replica_id], "killed")
            case reconcile.Terminate(replica_id=replica_id):
                self.machines[replica_id].alive = False
            case reconcile.End(replica_id=replica_id, state=state, code=code):
                self._change(replica_id, state=state, ended_at=self.now, code=code)
                for take in (self.desk.revoke, self.desk.free):
                    run(take(JOB, holder=replica_id))
            case reconcile.Request(group=group, count=count, not_before=not_before):
                for _ in range(count):
                    self._request(group, not_before)
            case reconcile.MoveSwap(to=to):
                assert self.swap_state is not None
                self.counts[f"swaps {to}"] += 1
                self.wanted = reconcile.wanted_after(self.wanted, new_group=self.swap_state.new_group, to=to)
                self.swap_state = replace(self.swap_state, state=to)
            case reconcile.GiveUp(reason=reason):
                raise AssertionError(f"seed {self.seed}: given up: {reason}")
            case _:
                raise AssertionError(action)

    def _change(self, replica_id: str, **values: Any) -> None:
        record = self.records[replica_id]
        if "state" in values and values["state"] is not record.state:
            advance(record.state, values["state"])
        self.records[replica_id] = replace(record, **values)

    def _request(self, group: int, not_before: float) -> None:
        replica_id = f"r{next(self.names)}"
        self.records[replica_id] = reconcile.Replica(
            replica_id=replica_id,
            group=group,
            state=ReplicaState.PENDING,
            market=Market.SPOT,
            presence=Presence.GONE,
            created_at=self.now,
            not_before=not_before,
        )

    def add(self) -> None:
        """What `tandemn add` does: one more of the present configuration."""
        swap = self.swap_state
        group = swap.new_group if swap and swap.state in {"draining", "done"} else 0
        if self.state is JobState.RUNNING:
            self.wanted[group] += 1
            self._request(group, 0.0)

    def swap(self) -> None:
        """What `tandemn swap` does, once: as many as live now, and half of them must have begun."""
        if self.state is not JobState.RUNNING or self.swap_state is not None:
            return
        count = max(1, sum(not each.state.has_ended for each in self.records.values()))
        group = len(self.wanted)
        self.wanted.append(count)
        self.swap_state = reconcile.Swap(state="launching", new_group=group, threshold=max(1, count // 2))
        for _ in range(count):
            self._request(group, 0.0)

    def kill_any(self) -> None:
        """Kill one that lives by request, but never the last that is wanted."""
        live = [
            each for each in self.records.values() if not each.state.has_ended and not each.kill_requested
        ]
        live = [each for each in live if each.state is not ReplicaState.PENDING and self.wanted[each.group]]
        if len(live) > 1 and sum(self.wanted) > 1 and self.state is JobState.RUNNING:
            self.counts["killed by request"] += 1
            self.kill(self.random.choice(live).replica_id)

    def kill(self, replica_id: str) -> None:
        """What `tandemn kill` does: the leases at once, kept back while the replica stores what it has."""
        run(self.desk.revoke(JOB, holder=replica_id, delay_ms=round(reconcile.STOP_GRACE_S * 1000)))
        self._change(replica_id, kill_requested=True)
        self.wanted[self.records[replica_id].group] -= 1

    def _move(self) -> None:
        rows = self.table.rows(JOB)
        live = [record for record in self.records.values() if not record.state.has_ended]
        facts = lifecycle.Facts(
            state=self.state,
            deadline=float("inf"),
            stop_at_deadline=False,
            cancelling_at=self.cancelling_at,
            outcome=self.outcome,
            chunks_total=len(rows),
            chunks_done=sum(row.done for row in rows),
            replicas_live=len(live),
            replicas_started=sum(record.launched_at is not None for record in live),
            replicas_begun=sum(record.began for record in live),
        )
        move = lifecycle.decide(facts, self.now)
        if move is None:
            return
        if move.to is JobState.ASSEMBLING:
            self.table.seal(JOB)
        if move.to is JobState.CANCELLING:
            self.cancelling_at = self.now
        self.state, self.outcome = move.to, move.outcome or self.outcome

    def cancel(self) -> None:
        """What `tandemn cancel` does."""
        if self.state is not JobState.ASSEMBLING:
            self.state, self.outcome, self.cancelling_at = JobState.CANCELLING, JobState.CANCELLED, self.now

    # -- replicas --------------------------------------------------------------------------------------

    def _boot(self, replica_id: str) -> None:
        machine = Machine(replica_id, speed=self.random.uniform(1, 8))
        self.machines[replica_id] = machine
        if self.chance(self.settings.fail_rate):
            self.at(self.random.uniform(1, 10), lambda: setattr(machine, "alive", False))
            return
        self.at(self.random.uniform(2, 30), lambda: self._live(machine))

    def _live(self, machine: Machine) -> None:
        self._heartbeat(machine)
        self._flush(machine)
        self._work(machine)

    def _runs(self, machine: Machine, again: Callable[[Machine], None]) -> bool:
        """Whether it runs now; a paused one comes back to `again` when it wakes."""
        if machine.alive and machine.paused_until > self.now:
            self.at(machine.paused_until - self.now, lambda: again(machine))
            return False
        return machine.alive

    def _heartbeat(self, machine: Machine) -> None:
        if not self._runs(machine, self._heartbeat):
            return
        tokens = {work.lease.row.chunk: work.lease.token for work in machine.work}
        try:
            record = self.records[machine.replica_id]
            if record.state is ReplicaState.LAUNCHING:
                self._change(machine.replica_id, state=ReplicaState.STARTING, said_hello=True)
                self._change(machine.replica_id, state=ReplicaState.RUNNING)
            lost = self.call(lambda: self.desk.renew(JOB, holder=machine.replica_id, tokens=tokens))
            self._change(machine.replica_id, last_seen=self.now, requests_done=machine.computed)
            if not record.kill_requested:
                machine.work = [work for work in machine.work if work.lease.row.chunk not in lost]
            orders = self.records[machine.replica_id].orders
            if orders == "stop" or self.records[machine.replica_id].kill_requested:
                self._stop(machine, "completed")
            machine.draining = machine.draining or orders == "drain"
        except (ConnectionError, QueueUnavailable):
            pass
        skew = self.random.uniform(0.8, 1.5)
        self.at(HEARTBEAT_S * skew, lambda: self._heartbeat(machine))

    def _work(self, machine: Machine) -> None:
        """Compute one request, lease more when there is room, complete what is full."""
        if not self._runs(machine, self._work) or machine.stopping:
            return
        try:
            if machine.draining and not machine.work:
                self._stop(machine, "completed")
                return
            if len(machine.work) < 2 and not machine.draining:
                self._lease(machine)
            if machine.work:
                self._advance_chunk(machine, machine.work[0])
        except (ConnectionError, QueueUnavailable, StoreUnavailable, Conflict):
            self.at(self.random.uniform(0.2, 2), lambda: self._work(machine))
            return
        pause = TOGETHER / machine.speed if machine.work else 1.0
        self.at(pause, lambda: self._work(machine))

    def _lease(self, machine: Machine) -> None:
        idle = not machine.work
        leases = self.call(lambda: self.desk.lease(JOB, holder=machine.replica_id, limit=1, steal=idle))
        for lease in leases:
            chunk = lease.row.chunk
            known = {of: count for (at, of), (count, _) in self.strikes.items() if at == chunk}
            machine.work.append(Work(lease, self.now, strikes=known))

    def _advance_chunk(self, machine: Machine, work: Work) -> None:
        chunk, token = work.lease.row.chunk, work.lease.token
        try:
            if not work.begun:
                self.call(lambda: self.desk.begin(JOB, chunk=chunk, token=token))
                work.begun = True
                self._change(machine.replica_id, began=True)
                for request in range(work.lease.row.requests):
                    # Parts are listed when the lease is granted, so later ones may be missed.
                    if self.stored.get((chunk, request), float("inf")) <= work.granted_at:
                        work.finished[request] = 1
            missing = [each for each in range(work.lease.row.requests) if each not in work.finished]
            if missing:
                self._compute(machine, work, missing)
            else:
                self._complete(machine, work)
        except LeaseLost:
            self.counts["leases lost"] += 1
            machine.work.remove(work)

    def _compute(self, machine: Machine, work: Work, missing: list[int]) -> None:
        """Compute some requests together, or one suspect alone; an engine that gets poison dies of it."""
        chunk = work.lease.row.chunk
        treated = {request: treatment(work.strikes.get(request, 0)) for request in missing}
        batch = [each for each in missing if treated[each] is Treatment.TOGETHER][:TOGETHER] or missing[:1]
        if treated[batch[0]] is Treatment.CONVICTED:
            assert (chunk, batch[0]) in self.poison, f"seed {self.seed}: a neighbour was convicted (I5)"
            work.finished[batch[0]] = 1
            work.unstored.add(batch[0])
            work.convicted.add(batch[0])
            return
        if any((chunk, request) in self.poison for request in batch):
            self._die(work, batch)
            return
        for request in batch:
            key = (chunk, request)
            stored = self.stored.get(key, float("inf"))
            assert stored > work.granted_at, f"seed {self.seed}: {key} was stored before the lease (I3)"
            self.computed[key] += 1
            machine.computed += 1
            work.finished[request] = 1
            work.unstored.add(request)

    def _die(self, work: Work, in_flight: list[int]) -> None:
        """The engine dies: everything that was with it gets a strike, here and at the control plane."""
        self.counts["engines died"] += 1
        chunk, death = work.lease.row.chunk, next(self.deaths)
        for request in in_flight:
            work.strikes[request] = work.strikes.get(request, 0) + 1
        for _ in range(3):
            with suppress(ConnectionError):
                known = self.call(partial(self._strike, chunk, in_flight, death))
                work.strikes |= {each: max(known[each], work.strikes[each]) for each in in_flight}
                return

    async def _strike(self, chunk: int, in_flight: list[int], death: int) -> dict[int, int]:
        for request in in_flight:
            count, last = self.strikes.get((chunk, request), (0, -1))
            self.strikes[chunk, request] = (count, last) if last == death else (count + 1, death)
        return {request: self.strikes[chunk, request][0] for request in in_flight}

    def _complete(self, machine: Machine, work: Work) -> None:
        chunk, token = work.lease.row.chunk, work.lease.token
        self.objects[chunk, str(token)] = frozenset(work.finished)
        result = ChunkResult(completed=len(work.finished), failed=0)

        def complete() -> Coroutine[Any, Any, None]:
            return self.desk.complete(JOB, holder=machine.replica_id, chunk=chunk, token=token, result=result)

        before = {row.chunk: row for row in self.table.rows(JOB)}[chunk]
        self.call(complete)
        assert before.token == str(token), f"seed {self.seed}: {chunk} completed under a lost lease (I2)"
        if self.chance(0.1):
            self.at(self.random.uniform(0, 30), lambda: self._deliver_again(complete))
        machine.work.remove(work)

    def _deliver_again(self, complete: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.counts["delivered twice"] += 1
        try:
            run(complete())
        except LeaseLost:
            assert self.state is JobState.ASSEMBLING, f"seed {self.seed}: a repeated completion was refused"

    def _flush(self, machine: Machine) -> None:
        if not self._runs(machine, self._flush):
            return
        self._store(machine)
        self.at(FLUSH_S, lambda: self._flush(machine))

    def _store(self, machine: Machine) -> None:
        """Make what is finished visible, at once or after a slow upload that a death cuts off."""
        for work in machine.work:
            if self.chance(self.settings.store_fault):
                continue  # part of the next try
            chunk, requests = work.lease.row.chunk, frozenset(work.unstored)
            work.unstored.clear()
            if self.chance(0.2):
                self.at(self.random.uniform(0, 5), partial(self._show_if_alive, machine, chunk, requests))
            else:
                self._show(chunk, requests)

    def _show_if_alive(self, machine: Machine, chunk: int, requests: frozenset[int]) -> None:
        if machine.alive:
            self._show(chunk, requests)

    def _show(self, chunk: int, requests: frozenset[int]) -> None:
        for request in requests:
            self.stored.setdefault((chunk, request), self.now)

    def _stop(self, machine: Machine, outcome: Any) -> None:
        """Notice: store what is finished, give the leases back, go."""
        if machine.stopping or not machine.alive:
            return
        machine.stopping = True
        if machine.paused_until > self.now:
            self.at(machine.paused_until - self.now, lambda: self._leave(machine, outcome))
        else:
            self._leave(machine, outcome)

    def _leave(self, machine: Machine, outcome: Any) -> None:
        if not machine.alive:
            return
        for work in machine.work:
            # It waits for its uploads under way, too.
            self._show(work.lease.row.chunk, frozenset(work.finished))
            with suppress(ConnectionError, QueueUnavailable, Conflict):
                self.call(partial(self._release, work))
        if not self.records[machine.replica_id].state.has_ended:
            self._change(machine.replica_id, goodbye=Goodbye(outcome=outcome))
        machine.alive = False

    def _release(self, work: Work) -> Coroutine[Any, Any, None]:
        return self.desk.release(JOB, chunk=work.lease.row.chunk, token=work.lease.token)

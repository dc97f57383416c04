"""One backend of a local deployment: applies the scaling decisions to engine processes, and admits requests."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Protocol, assert_never

import structlog

from tandemn.protocol.deployments import BackendState
from tandemn.serving.local import scaling
from tandemn.serving.local.front import Door, Front, Refused
from tandemn.serving.local.orders import BackendReport, Order, ReplicaReport
from tandemn.serving.local.replica import Replica, State
from tandemn.serving.local.scaling import Scale, Traffic

if TYPE_CHECKING:
    from pathlib import Path

    from tandemn.protocol.replicas import Market
    from tandemn.serving.local.clock import FleetClock
    from tandemn.serving.local.lifetimes import LifetimeLog
    from tandemn.settings import Settings

#: Requests that wait for a container at most; the next ones are told to come again.
MOST_WAITING = 2048
#: A replica that was ready for so long before it ended had come up well, in seconds.
STABLE_S = 10.0
#: How long a replica that is not needed any more may finish what it has, in seconds.
DRAIN_S = 600.0
#: The same after a preemption's notice: what clouds give.
NOTICE_S = 120.0
#: Logs of ended replicas that are kept for each deployment.
KEPT_LOGS = 20

_log = structlog.get_logger()


class House(Protocol):
    """What both backends of a deployment share."""

    settings: Settings
    clock: FleetClock
    lifetimes: LifetimeLog
    traffic: Traffic
    log_folder: Path

    def slots(self, order: Order) -> int:
        """How many requests an engine computes at once."""
        ...

    def wake(self) -> None:
        """Have the next decisions made now."""
        ...


class Backend:
    """Spot or serverless.

    Args:
        market: which of the two.
        order: what it should be.
        house: what it shares with the other one.
    """

    def __init__(self, market: Market, order: Order, house: House) -> None:
        self.market = market
        self.order = order
        self.replicas: dict[str, Replica] = {}
        self._house = house
        self._room = 0
        self._scale = Scale()
        self._change_reason = ""
        self._failures = 0
        self._failure = ""
        self._not_before = -math.inf
        self._waiting: deque[asyncio.Future[Replica]] = deque()
        self._door = Door(gate=self, key=b"", longest_s=None)
        self.front = Front(self._door)
        self.take(order)

    def take(self, order: Order) -> None:
        """Follow this order from now on."""
        if order.engine != self.order.engine:
            self._failures, self._not_before = 0, -math.inf
        self.order = order
        self._door.key = order.engine_api_key.get_secret_value().encode()
        # What an engine takes is read once: it is asked for with every request.
        self._room = self._house.slots(order)
        if order.serverless is not None:
            self._room = order.serverless.scaling.concurrency
            self._door.longest_s = self._house.clock.real(order.serverless.scaling.timeout)

    # --- decisions ---

    def step(self, now: float) -> None:
        """Decide what there should be, and begin it."""
        for replica in list(self.replicas.values()):
            if replica.inflight:
                self._house.traffic.still_busy(now)
            replica.end_if_drained(now)
        change = self._change(now)
        if change.start or change.end:
            self._change_reason = change.reason
        for replica_id in change.end:
            self.replicas[replica_id].drain(now + DRAIN_S, change.reason)
            self.replicas[replica_id].end_if_drained(now)
        if now >= self._not_before:
            for _ in range(change.start):
                self._start(now)

    def idle_until(self) -> float:
        """When the next serverless replica has been idle for its window, unless a request comes; never: infinity."""
        if self.order.serverless is None:
            return math.inf
        window_s = self.order.serverless.scaling.scaledown_window
        idle = [each for each in self.replicas.values() if each.state is State.READY and not each.inflight]
        return min((each.idle_since + window_s for each in idle), default=math.inf)

    def _change(self, now: float) -> scaling.Change:
        members = [each.member(self.order) for each in self.replicas.values() if each.is_open]
        if self.order.spot is not None:
            traffic = self._house.traffic
            self._scale = scaling.next_scale(
                self.order.spot.scaling,
                self._scale,
                rate=traffic.rate(now),
                last_request=traffic.last_request,
                now=now,
            )
            return scaling.spot_change(members, self._scale.target)
        assert self.order.serverless is not None, "an order is for one of the two"
        policy = self.order.serverless
        return scaling.serverless_change(
            members,
            waiting=sum(not each.done() for each in self._waiting),
            concurrency=policy.scaling.concurrency,
            least=policy.min_containers,
            most=policy.max_containers,
            scaledown_window=policy.scaling.scaledown_window,
            now=now,
        )

    def _start(self, now: float) -> None:
        order = self.order.spot or self.order.serverless
        assert order is not None, "an order is for one of the two"
        replica = Replica(
            self.market,
            self.order,
            self._house.settings,
            self._house.log_folder,
            boot_s=self._house.clock.real(order.start_delay_s),
            on_change=self._changed,
        )
        self.replicas[replica.replica_id] = replica
        self._house.lifetimes.begin(replica.replica_id, self.market, self.order.usd_per_hour, now)
        _log.info("a replica starts", replica=replica.replica_id, why=self._change_reason)

    def _changed(self, replica: Replica) -> None:
        now = self._house.clock.now()
        match replica.state:
            case State.READY:
                replica.ready_since = replica.idle_since = now
                self._grant()
            case State.ENDED:
                del self.replicas[replica.replica_id]
                self._ended(replica, now)
            case State.BOOTING | State.STARTING | State.DRAINING:
                pass
            case _:
                assert_never(replica.state)
        self._house.wake()

    def _ended(self, replica: Replica, now: float) -> None:
        self._house.lifetimes.end(replica.replica_id, now, replica.why_ended)
        self._forget_logs()
        if replica.failure is None:
            return
        was_stable = replica.ready_since is not None and now - replica.ready_since >= STABLE_S
        self._failures = 0 if was_stable else self._failures + 1
        self._failure = replica.failure
        self._not_before = now + scaling.backoff_s(self._failures)
        if self._has_failed:
            self._refuse_waiting()

    @property
    def _has_failed(self) -> bool:
        is_up = any(each.state is State.READY for each in self.replicas.values())
        return self._failures >= scaling.FAILED_STARTS and not is_up

    def _forget_logs(self) -> None:
        living = {f"{replica_id}.log" for replica_id in self.replicas}
        logs = [
            path for path in self._house.log_folder.glob(f"{self.market}-*.log") if path.name not in living
        ]
        logs.sort(key=lambda path: path.stat().st_mtime)
        for path in logs[:-KEPT_LOGS]:
            path.unlink(missing_ok=True)

    # --- the gate ---

    def is_ready(self) -> bool:
        return any(each.state is State.READY for each in self.replicas.values())

    def arrived(self) -> None:
        self._house.traffic.note(self._house.clock.now())

    async def admit(self) -> Replica:
        replica = None if self._waiting else self._free()
        if replica is not None:
            replica.inflight += 1
            return replica
        if self.order.spot is not None:
            # The router has somewhere else to go, and its own way to come back.
            if self.is_ready():
                raise Refused(429, "every replica is full", code="overloaded", retry_after_s=1)
            raise Refused(503, "no replica is ready", code="no_replica", retry_after_s=1)
        return await self._wait()

    def release(self, replica: Replica) -> None:
        replica.inflight -= 1
        now = self._house.clock.now()
        replica.idle_since = now
        self._house.traffic.still_busy(now)
        self._grant()
        if replica.stop_at is not None:
            replica.end_if_drained(now)

    async def _wait(self) -> Replica:
        if len(self._waiting) >= MOST_WAITING:
            raise Refused(429, f"{MOST_WAITING} requests wait already", code="overloaded", retry_after_s=1)
        granted: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        self._house.wake()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(granted.result())
            raise

    def _grant(self) -> None:
        """Give what is free to those that wait, in the order in which they came."""
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            replica = self._free()
            if replica is None:
                return
            replica.inflight += 1
            self._waiting.popleft().set_result(replica)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            granted = self._waiting.popleft()
            if not granted.done():
                granted.set_exception(
                    Refused(503, f"no container starts: {self._failure}", code="startup_failed")
                )

    def _free(self) -> Replica | None:
        """Return a replica with room: of spot the least busy; of serverless the busiest, so that others can end."""
        sign = 1 if self.order.spot is not None else -1
        free = [r for r in self.replicas.values() if r.state is State.READY and r.inflight < self._room]
        return min(free, key=lambda r: sign * r.inflight, default=None)

    # --- what a hand does ---

    def notice(self, replica_id: str, now: float) -> None:
        """A preemption was announced: the replica finishes what it has, and ends."""
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.stop_at is None:
            _log.info("a replica has notice", replica=replica_id)
            replica.drain(now + NOTICE_S, "it was preempted, with notice")
            replica.end_if_drained(now)

    async def close(self) -> None:
        """End everything, whatever is under way."""
        self.front.close()
        self._failure = "the deployment is deleted"
        self._refuse_waiting()
        replicas = list(self.replicas.values())
        for replica in replicas:
            replica.stop("its backend is deleted")
        await asyncio.gather(*(replica.wait_ended() for replica in replicas))

    # --- what is told ---

    def report(self) -> BackendReport:
        replicas = list(self.replicas.values())
        ready = sum(each.state is State.READY for each in replicas)
        reason: str | None = self._scale.reason if self.order.spot is not None else self._change_reason
        if ready:
            state = BackendState.READY
        elif self._has_failed:
            state, reason = BackendState.FAILED, " ".join(self._failure.split())
        elif any(each.is_open for each in replicas) or self._is_awaited():
            state = BackendState.PROVISIONING
        else:
            state = BackendState.IDLE
        return BackendReport(
            state=state,
            url=self.front.url,
            reason=reason,
            ready=ready,
            replicas=[
                ReplicaReport(
                    replica_id=each.replica_id, state=each.state, pid=each.pid, inflight=each.inflight
                )
                for each in replicas
            ],
        )

    def _is_awaited(self) -> bool:
        return bool(self._waiting) or self._scale.target > 0

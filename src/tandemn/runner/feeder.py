"""Keeps the engine full: a fixed set of workers, each with one connection, takes requests that are ready.

It knows requests and the engine's address, not chunks or leases. Requests with strikes are computed with
nothing else in flight. When the engine is gone (`detach`) the requests that were with it are handed back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from tandemn.runner import outcome
from tandemn.runner.engine_connection import ConnectionLost, EngineConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

#: A request that is not answered in this time is broken off; then the engine is asked whether it lives.
REQUEST_S = 1800.0

#: How often requests under way are looked at for their age.
SWEEP_S = 5.0

#: Weight of the newest second in the measured rate.
_RATE_WEIGHT = 0.3

_log = structlog.get_logger()


class Owner(Protocol):
    """What a request belongs to."""

    is_dropped: bool


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way; changes as it is tried."""

    owner: Owner
    index: int
    custom_id: str
    body: bytes
    strikes: int = 0
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a request ended; AGAIN means that it was tried often enough."""

    judgement: outcome.Judgement
    status: int
    """Of the last answer; 0 where there was none."""
    body: bytes
    usage: outcome.Usage = outcome.NO_USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the engine listens."""

    host: str
    port: int
    path: str
    api_key: str | None


class Feeder:
    """Create, `resize`, `attach` an engine, `put` requests; results go to `on_result`."""

    def __init__(
        self,
        on_result: Callable[[Request, Result], None],
        *,
        has_died: Callable[[], Awaitable[bool]],
        request_s: float = REQUEST_S,
    ) -> None:
        """Args: has_died: told of a lost connection, says whether the engine's process is gone."""
        self._on_result = on_result
        self._has_died = has_died
        self._request_s = request_s
        self._ready: deque[Request] = deque()
        self._suspects: deque[Request] = deque()
        self._delayed: dict[Request, asyncio.TimerHandle] = {}
        self._in_flight: dict[int, tuple[Request, EngineConnection, float]] = {}
        self._is_alone = False
        self._address: Address | None = None
        self._connections: dict[int, EngineConnection] = {}
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._low = asyncio.Event()
        self._settled = asyncio.Event()
        self._low_mark = 1
        self.limit = 0
        self.done = 0
        """Requests that ended, since the start."""
        self.computed = 0
        """Those among them that the engine answered, refusals included."""
        self._rate = 0.0
        self._counted = (time.monotonic(), 0)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """Requests put and not with the engine."""
        return len(self._ready) + len(self._suspects) + len(self._delayed)

    @property
    def is_idle(self) -> bool:
        return not self._in_flight and not self.waiting

    def requests_per_s(self) -> float:
        """Give the smoothed rate at which requests end; at most one new reading a second."""
        then, done = self._counted
        now = time.monotonic()
        if now - then >= 1.0:
            newest = (self.done - done) / (now - then)
            self._rate = newest if not self._rate else self._rate + _RATE_WEIGHT * (newest - self._rate)
            self._counted = (now, self.done)
            self._low_mark = max(2 * self.limit, int(self._rate))
        return self._rate

    def resize(self, limit: int) -> None:
        """Set how many requests may be with the engine; workers above it end after their request."""
        self.limit = max(1, limit)
        self._low_mark = max(2 * self.limit, int(self._rate))
        for number in range(self.limit):
            task = self._workers.get(number)
            if task is None or task.done():
                self._workers[number] = asyncio.create_task(self._work(number), name=f"feeder-{number}")
        self._wake.set()

    def attach(self, address: Address) -> None:
        """Begin, or begin again, to send."""
        self._connections.clear()
        self._address = address
        self._wake.set()

    def detach(self) -> list[Request]:
        """Stop sending and give back what was with the engine; nothing of it will have a result."""
        self._address = None
        taken = [request for request, _, _ in self._in_flight.values()]
        self._in_flight.clear()
        self._is_alone = False
        for connection in self._connections.values():
            connection.abort()
        self._connections.clear()
        return [request for request in taken if not request.owner.is_dropped]

    def put(self, requests: Iterable[Request]) -> None:
        for request in requests:
            (self._suspects if request.strikes else self._ready).append(request)
        self._note_level()
        self._wake.set()

    async def room(self) -> None:
        """Wait until more requests are wanted."""
        self._note_level()
        await self._low.wait()

    async def settle(self, timeout_s: float) -> None:
        """Send nothing more and wait for what is under way, at most so long."""
        self._ready.clear()
        self._suspects.clear()
        for timer in self._delayed.values():
            timer.cancel()
        self._delayed.clear()
        self._settled.clear()
        if self._in_flight:
            try:
                await asyncio.wait_for(self._settled.wait(), timeout_s)
            except TimeoutError:
                _log.info("requests broken off", in_flight=len(self._in_flight))

    async def close(self) -> None:
        self.detach()
        tasks = list(self._workers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self) -> None:
        """Break off requests that are too old; runs until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self._request_s))
            oldest = time.monotonic() - self._request_s
            for request, connection, since in list(self._in_flight.values()):
                if since < oldest or request.owner.is_dropped:
                    connection.abort()

    def _note_level(self) -> None:
        if len(self._ready) < self._low_mark:
            self._low.set()
        else:
            self._low.clear()

    def _take(self) -> Request | None:
        if self._address is None or self._is_alone:
            return None
        while self._suspects:
            # Whoever sends the suspect sends nothing beside it; the others wait here.
            if self._in_flight:
                return None
            request = self._suspects.popleft()
            if not request.owner.is_dropped:
                self._is_alone = True
                return request
        while self._ready:
            request = self._ready.popleft()
            if not request.owner.is_dropped:
                return request
        return None

    async def _work(self, number: int) -> None:
        while number < self.limit:
            request = self._take()
            if request is None:
                self._low.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            if not self._low.is_set() and len(self._ready) < self._low_mark:
                self._low.set()
            await self._send(number, request)
        self._connections.pop(number, None)

    async def _send(self, number: int, request: Request) -> None:
        connection = self._connection(number)
        self._in_flight[number] = held = (request, connection, time.monotonic())
        request.tries += 1
        try:
            status, body = await connection.post(request.body)
        except ConnectionLost as exc:
            died = await self._has_died()
            if self._in_flight.get(number) is not held:
                return
            if died:
                # The supervisor detaches the engine, and takes this request among those in flight.
                self._address = None
                return
            self._give_back(number)
            self._again(request, 0, str(exc).encode())
            return
        if self._in_flight.get(number) is not held:
            return
        self._give_back(number)
        self._judge(request, status, body)

    def _give_back(self, number: int) -> None:
        del self._in_flight[number]
        if self._is_alone or self._suspects:
            self._is_alone = False
            self._wake.set()
        if not self._in_flight:
            self._settled.set()

    def _connection(self, number: int) -> EngineConnection:
        connection = self._connections.get(number)
        if connection is None:
            address = self._address
            assert address is not None
            connection = EngineConnection(address.host, address.port, address.path, address.api_key)
            self._connections[number] = connection
        return connection

    def _judge(self, request: Request, status: int, body: bytes) -> None:
        if request.owner.is_dropped:
            return
        judgement = outcome.judge(status)
        usage: outcome.Usage | None = outcome.NO_USAGE
        if judgement is outcome.Judgement.ANSWER:
            usage = outcome.usage(body)
        if judgement is outcome.Judgement.AGAIN:
            self._again(request, status, body)
        elif usage is None:
            self._again(request, status, b"the engine's answer is not JSON")
        else:
            self.computed += 1
            self._end(request, Result(judgement, status, body, usage))

    def _again(self, request: Request, status: int, body: bytes) -> None:
        """Try once more after a while, or give the request up."""
        if request.owner.is_dropped:
            return
        if request.tries >= outcome.MAX_TRIES:
            self._end(request, Result(outcome.Judgement.AGAIN, status, body))
            return
        loop = asyncio.get_running_loop()
        wait = outcome.backoff_s(request.tries)
        self._delayed[request] = loop.call_later(wait, self._ripe, request)

    def _ripe(self, request: Request) -> None:
        self._delayed.pop(request, None)
        (self._suspects if request.strikes else self._ready).appendleft(request)
        self._wake.set()

    def _end(self, request: Request, result: Result) -> None:
        self.done += 1
        self._on_result(request, result)

"""The fleet process: keeps the backends of one deployment on this machine as their orders say.

It needs nobody: not the control plane that started it, nor the command that did. It ends when it has no order left,
or by SIGTERM, and its engines end with it however it ends.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineSpec
from tandemn.serving.local.backend import Backend
from tandemn.serving.local.clock import FleetClock
from tandemn.serving.local.lifetimes import LifetimeLog
from tandemn.serving.local.orders import FleetReport
from tandemn.serving.local.router import RouterFolder
from tandemn.serving.local.scaling import Traffic, backoff_s

if TYPE_CHECKING:
    from tandemn.protocol.replicas import Market
    from tandemn.serving.local.folder import FleetFolder
    from tandemn.serving.local.orders import BackendReport, Order
    from tandemn.settings import Settings

#: Between two looks at orders and delays, in real seconds; what happens within is acted on at once.
TICK_S = 0.2
#: The same at a clock that runs faster.
SHORTEST_TICK_S = 0.02
#: The report is written this often although nothing but the load has changed, in real seconds: it is also the sign
#: of life.
REPORT_S = 1.0
#: Between two looks at whether the deployment's router lives, in real seconds.
ROUTER_S = 0.5
#: One that has lived for so long had started well, in real seconds.
ROUTER_STABLE_S = 30.0

_log = structlog.get_logger()


class Fleet:
    """The process's one object.

    Args:
        folder: where its orders are.
        settings: of this machine.
    """

    def __init__(self, folder: FleetFolder, settings: Settings) -> None:
        self.settings = settings
        self.log_folder = folder.logs
        self.lifetimes = LifetimeLog(folder.lifetimes)
        self.traffic = Traffic()
        self._folder = folder
        last = folder.report()
        began = time.time() if last is None else max(last.at, time.time())
        self.clock = FleetClock(settings.local_speed, began)
        self._last_sign = began if last is None else last.at
        self._last_ports = {} if last is None else {m: _port(b.url) for m, b in last.backends.items()}
        self._backends: dict[Market, Backend] = {}
        self._awake = asyncio.Event()
        self._is_told_to_end = False
        self._router = RouterFolder(settings, folder.path.name)
        self._told: dict[Market, BackendReport] | None = None
        self._reported_at = 0.0

    def slots(self, order: Order) -> int:
        engine = order.engine
        spec = EngineSpec(engine=engine.engine, model=engine.model, port=0, extra_args=engine.engine_args)
        return adapters(self.settings)[engine.engine].slots(spec)

    def wake(self) -> None:
        self._awake.set()

    async def run(self) -> None:
        """Serve until there is no order left, or until SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self.wake)
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self.lifetimes.close_open(self._last_sign, "its fleet process died")
        tick_s = max(SHORTEST_TICK_S, TICK_S / self.clock.speed)
        keeping = asyncio.create_task(self._keep_router(), name="router")
        try:
            while await self._follow_orders():
                self._take_notices()
                for backend in self._backends.values():
                    self._step(backend)
                self._report()
                self._awake.clear()
                try:
                    await asyncio.wait_for(self._awake.wait(), self._pause_s(tick_s))
                except TimeoutError:
                    continue
        finally:
            keeping.cancel()
            await asyncio.gather(*(backend.close() for backend in self._backends.values()))
            self._backends.clear()
            self._report()
            self._folder.forget_process()

    def _step(self, backend: Backend) -> None:
        try:
            backend.step(self.clock.now())
        except Exception as exc:  # noqa: BLE001 - a supervisor: a fault of ours must not end what serves
            _log.error("a step failed", market=backend.market, error=str(exc), exc_info=exc)

    def _pause_s(self, tick_s: float) -> float:
        """Until the next look: a serverless replica is paid for until it ends, so it ends when its window does."""
        idle_until = min((each.idle_until() for each in self._backends.values()), default=math.inf)
        left_s = self.clock.real(idle_until - self.clock.now())
        return left_s if 0 < left_s < tick_s else tick_s

    def _end(self) -> None:
        self._is_told_to_end = True
        self.wake()

    async def _follow_orders(self) -> bool:
        """Take over what has changed; False where nothing is left to do."""
        if self._is_told_to_end:
            return False
        orders = self._folder.changed_orders()
        if orders is not None:
            for market in list(self._backends):
                if market not in orders:
                    await self._backends.pop(market).close()
            for market, order in orders.items():
                await self._obey(market, order)
        return bool(self._backends)

    async def _obey(self, market: Market, content: bytes) -> None:
        try:
            order = self._folder.read_order(content)
        except ValidationError as exc:
            # Of another version: what runs goes on.
            _log.error("an order cannot be read", market=market, error=str(exc.errors(include_input=False)))
            return
        if market in self._backends:
            self._backends[market].take(order)
            return
        backend = Backend(market, order, self)
        await backend.front.open(self._last_ports.get(market, 0))
        self._backends[market] = backend
        _log.info("a backend is served", market=market, url=backend.front.url)

    def _take_notices(self) -> None:
        for replica_id in self._folder.take_notices():
            for backend in self._backends.values():
                backend.notice(replica_id, self.clock.now())

    async def _keep_router(self) -> None:
        """Start the deployment's router again when it has died: the control plane may be dead, too."""
        failures, lived = 0, 0
        while True:
            await asyncio.sleep(ROUTER_S)
            try:
                if not await asyncio.to_thread(self._router.start):
                    lived += 1
                    failures = 0 if lived * ROUTER_S >= ROUTER_STABLE_S else failures
                    continue
            except OSError as exc:
                _log.error("the router does not start", error=str(exc))
            else:
                _log.warning("the router had died and is started again")
            failures, lived = failures + 1, 0
            await asyncio.sleep(backoff_s(failures))

    def _report(self) -> None:
        backends = {market: backend.report() for market, backend in self._backends.items()}
        report = FleetReport(pid=os.getpid(), at=self.clock.now(), backends=backends)
        told = {market: backend.without_load() for market, backend in backends.items()}
        if told == self._told and time.monotonic() - self._reported_at < REPORT_S:
            return
        try:
            self._folder.write_report(report)
        except OSError as exc:
            # A full disk must not end the service.
            _log.error("the report was not written", error=exc.strerror)
            return
        self._told, self._reported_at = told, time.monotonic()


def _port(url: str | None) -> int:
    return 0 if url is None else int(url.rpartition(":")[2])

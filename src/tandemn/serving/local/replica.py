"""One replica of a local deployment: an engine process from its boot to its end, and the requests that it has."""

from __future__ import annotations

import asyncio
import secrets
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from tandemn.errors import TandemnError
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.serving.local.scaling import Member

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tandemn.protocol.replicas import Market
    from tandemn.serving.local.orders import Order
    from tandemn.serving.local.upstream import Upstream
    from tandemn.settings import Settings

HOST = "127.0.0.1"
#: How long an engine may take to end by itself, in seconds; what it had to finish, it has finished before.
STOP_GRACE_S = 2.0

_log = structlog.get_logger()


class State(StrEnum):
    BOOTING = "booting"
    """Waits as a cloud's machine would take to boot."""
    STARTING = "starting"
    """The engine loads its model."""
    READY = "ready"
    DRAINING = "draining"
    """Gets nothing new and finishes what it has."""
    ENDED = "ended"


class Replica:
    """One engine process.

    Args:
        market: of its backend.
        order: what it runs, for as long as it lives.
        settings: where models and engines are.
        log_folder: gets its log.
        boot_s: seconds, real ones, before its engine starts.
        on_change: called when its state has changed.
    """

    def __init__(
        self,
        market: Market,
        order: Order,
        settings: Settings,
        log_folder: Path,
        *,
        boot_s: float,
        on_change: Callable[[Replica], None],
    ) -> None:
        self.replica_id = f"{market.value}-{secrets.token_hex(4)}"
        self.order = order
        self.state = State.BOOTING
        self.inflight = 0
        self.idle_since = 0.0
        self.ready_since: float | None = None
        self.stop_at: float | None = None
        """When it is ended although requests are under way; None: it is not ending."""
        self.failure: str | None = None
        """Why it did not come up, or that it ended unasked."""
        self.why_ended = ""
        self.key = secrets.token_urlsafe(24)
        """Of its engine: known to this process alone."""
        self.idle: list[Upstream] = []
        """Connections to it that carry no request."""
        self.port = 0
        self._settings = settings
        self._log_path = log_folder / f"{self.replica_id}.log"
        self._boot_s = boot_s
        self._on_change = on_change
        self._process: EngineProcess | None = None
        self._is_told_to_end = False
        self._life = asyncio.create_task(self._live(), name=self.replica_id)
        # Not in the coroutine: one that is cancelled before its first step runs nothing of its own.
        self._life.add_done_callback(self._end)

    @property
    def pid(self) -> int | None:
        """Whoever kills this process kills the replica. None while it boots."""
        return None if self._process is None else self._process.pid

    @property
    def is_open(self) -> bool:
        """Whether it lives and may get requests, now or once it is up."""
        return self.state in {State.BOOTING, State.STARTING, State.READY}

    def member(self, order: Order) -> Member:
        """Show it to the decisions."""
        return Member(
            replica_id=self.replica_id,
            is_ready=self.state is State.READY,
            is_current=self.order.engine == order.engine and self.order.hf_token == order.hf_token,
            inflight=self.inflight,
            idle_since=self.idle_since,
        )

    def drain(self, until: float, why: str) -> None:
        """Give it no more requests, and end it when it has none, or at `until`."""
        if self.state is State.ENDED:
            return
        self.state = State.DRAINING
        self.why_ended = self.why_ended or why
        self.stop_at = until if self.stop_at is None else min(self.stop_at, until)
        self._on_change(self)

    def end_if_drained(self, now: float) -> None:
        """End it where it drains and nothing keeps it."""
        if self.stop_at is not None and (not self.inflight or now >= self.stop_at):
            self.stop(self.why_ended)

    def stop(self, why: str) -> None:
        """End it now; `wait_ended` returns when it has."""
        if not self._is_told_to_end:
            self._is_told_to_end = True
            self.why_ended = why
            if self.state is not State.ENDED:
                self.state = State.DRAINING
            self._life.cancel()

    async def wait_ended(self) -> None:
        """Return when its process is gone."""
        await asyncio.wait([self._life])

    async def _live(self) -> None:
        try:
            await asyncio.sleep(self._boot_s)
            self._become(State.STARTING)
            process = self._process = self._engine()
            await process.start()
            self.port = process.spec.port
            await process.wait_ready(self._settings.engine_start_s)
            if self.state is State.STARTING:
                self._become(State.READY)
            status = await process.wait_dead()
            self.failure = f"ended unasked with status {status}"
        except (TandemnError, OSError) as exc:
            self.failure = str(exc)
        except asyncio.CancelledError:
            if not self._is_told_to_end:
                raise
        finally:
            if self._process is not None:
                await self._process.stop()
            for upstream in self.idle:
                upstream.drop()
            self.idle.clear()

    def _end(self, _life: asyncio.Task[None]) -> None:
        self.why_ended = self.failure or self.why_ended
        _log.info("a replica ended", replica=self.replica_id, why=self.why_ended)
        self._become(State.ENDED)

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(self)

    def _engine(self) -> EngineProcess:
        engine = self.order.engine
        spec = EngineSpec(
            engine=engine.engine,
            model=engine.model,
            host=HOST,
            api_key=self.key,
            max_model_len=engine.max_model_len,
            extra_args=engine.engine_args,
        )
        token = self.order.hf_token
        return EngineProcess(
            adapters(self._settings)[engine.engine],
            spec,
            self._log_path,
            stop_grace_s=STOP_GRACE_S,
            environment={} if token is None else {"HF_TOKEN": token.get_secret_value()},
        )

"""Keeps one engine running: starts it, hears of its death, sorts the requests that were in flight, starts it again."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import aiohttp
import structlog

from tandemn.errors import EngineFailed, TandemnError
from tandemn.fleet.engines.engine import EngineSpec
from tandemn.fleet.engines.process import EngineProcess, log_tail
from tandemn.protocol.replicas import EngineDeath, EngineReading
from tandemn.runner import strikes
from tandemn.runner.chunks import HeldChunk
from tandemn.runner.concurrency import first_limit, next_limit
from tandemn.runner.feeder import Address
from tandemn.runner.record import keep_conviction
from tandemn.runner.retry import patiently

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tandemn.client import ReplicaClient
    from tandemn.fleet.engines.engine import EngineAdapter
    from tandemn.protocol.replicas import Assignment
    from tandemn.runner.feeder import Feeder, Request

HOST = "127.0.0.1"

#: A lost connection is the engine's death where its process ends within this time.
DEATH_S = 1.0

#: An engine whose health page takes longer hangs: it is killed, which counts as its death. Generous, since a
#: busy API server answers late.
HEALTH_S = 60.0

#: How long the control plane is asked for strikes; then only this runner's own count.
REPORT_S = 10.0

#: Engines end by themselves within this time or are killed: a notice leaves little.
STOP_GRACE_S = 3.0

#: vLLM chooses ports for its own parts, and anybody's connection may be given one before it is used: then it is
#: started again.
PORT_TRIES = 3
#: How the operating system, and engines, say that.
_PORT_TAKEN = ("already in use", "is in use", "couldn't bind")

#: Between two readings of the engine's figures.
READING_S = 2.0
_METRICS_S = 5.0

#: Of an engine's log, in a report or reason.
_TAIL_CHARS = 2000

_log = structlog.get_logger()


class EngineSupervisor:
    """One per runner; `start` once, then `run` until cancelled, then `stop`."""

    def __init__(
        self,
        adapter: EngineAdapter,
        assignment: Assignment,
        client: ReplicaClient,
        log_path: Path,
        on_line: Callable[[HeldChunk], None],
    ) -> None:
        """Args: on_line: called when a chunk got an error line for a request that killed the engine."""
        self._adapter = adapter
        self._assignment = assignment
        self._client = client
        self._log_path = log_path
        self._on_line = on_line
        self._process: EngineProcess | None = None
        self._verdict: asyncio.Task[bool] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._deaths_in_a_row = 0
        self._computed_at_death = -1
        self.deaths = 0
        self.reading: EngineReading | None = None

    @property
    def is_up(self) -> bool:
        return self.reading is not None

    async def start(self) -> None:
        """Start the engine and return when it answers. Raises InvalidInput, MissingDependency, EngineFailed."""
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                return await self._start()
            except EngineFailed as exc:
                if not tries_left or not lost_its_port(exc.message):
                    raise
                _log.warning(
                    "a port of the engine's was taken meanwhile; starting it again", error=exc.message
                )
        raise AssertionError("the last try returns or raises")

    async def _start(self) -> None:
        assignment = self._assignment
        spec = EngineSpec(
            engine=self._adapter.name,
            model=assignment.model,
            host=HOST,
            api_key=secrets.token_urlsafe(24),
            tp=assignment.tp,
            pp=assignment.pp,
            dp=assignment.dp,
            extra_args=tuple(assignment.engine_args),
        )
        process = EngineProcess(self._adapter, spec, self._log_path, stop_grace_s=STOP_GRACE_S)
        self._process = process
        began = time.monotonic()
        await process.start()
        await process.wait_ready(assignment.engine_start_s)
        self.reading = EngineReading()
        _log.info("engine is ready", seconds=round(time.monotonic() - began, 2), pid=process.pid)

    @property
    def address(self) -> Address:
        assert self._process is not None
        spec = self._process.spec
        return Address(host=spec.host, port=spec.port, path=self._assignment.endpoint, api_key=spec.api_key)

    async def run(self, feeder: Feeder) -> None:
        """Feed the engine and outlive its deaths. Raises EngineFailed where it cannot be kept alive."""
        slots = self._adapter.slots(self._spec)
        feeder.resize(first_limit(slots))
        while True:
            feeder.attach(self.address)
            readings = asyncio.create_task(self._read_figures(feeder, slots))
            try:
                assert self._process is not None
                status = await self._process.wait_dead()
            finally:
                readings.cancel()
            self.reading = None
            await self._bury(feeder, status)
            try:
                await self.start()
            except TandemnError as exc:
                raise EngineFailed(
                    f"the engine died and does not start again: {exc.message}", code="engine_died"
                ) from exc

    @property
    def _spec(self) -> EngineSpec:
        assert self._process is not None
        return self._process.spec

    async def _bury(self, feeder: Feeder, status: int) -> None:
        """Give strikes to what was in flight, and put it where it belongs."""
        in_flight = feeder.detach()
        self.deaths += 1
        reason = f"exit status {status}: {log_tail(self._log_path)[-_TAIL_CHARS:]}"
        _log.warning("engine died", status=status, in_flight=len(in_flight), deaths=self.deaths)
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if feeder.computed == self._computed_at_death else 1
        self._computed_at_death = feeder.computed
        if in_flight:
            await self._strike(in_flight, reason)
        feeder.put([request for request in in_flight if not self._convict(request)])
        if strikes.engine_is_broken(self._deaths_in_a_row):
            raise EngineFailed(
                f"the engine died {self._deaths_in_a_row} times without computing a request; {reason}",
                code="engine_died",
            )

    async def _strike(self, in_flight: list[Request], reason: str) -> None:
        """Report the death; the control plane's count includes what other replicas reported."""
        by_chunk: dict[int, list[int]] = {}
        for request in in_flight:
            request.strikes += 1
            request.tries = 0
            by_chunk.setdefault(_chunk(request).number, []).append(request.index)
        death = EngineDeath(in_flight=by_chunk, reason=reason)
        try:
            async with asyncio.timeout(REPORT_S):
                reply = await patiently(lambda: self._client.engine_death(death), "engine death")
        except (TimeoutError, TandemnError) as exc:
            _log.warning("engine death not reported", error=str(exc))
            return
        for request in in_flight:
            known = reply.strikes.get(_chunk(request).number, {}).get(request.index, 0)
            request.strikes = max(request.strikes, known)

    def _convict(self, request: Request) -> bool:
        if request.owner.is_dropped or strikes.treatment(request.strikes) is not strikes.Treatment.CONVICTED:
            return request.owner.is_dropped
        chunk = _chunk(request)
        _log.warning("request killed the engine", chunk=chunk.number, index=request.index)
        keep_conviction(self._assignment.job_id, chunk, request)
        self._on_line(chunk)
        return True

    async def has_died(self) -> bool:
        """Say, after a connection was lost, whether the engine is gone; one that hangs is killed first."""
        if self._verdict is None or self._verdict.done():
            self._verdict = asyncio.create_task(self._find_out(), name="engine-verdict")
        return await asyncio.shield(self._verdict)

    async def _find_out(self) -> bool:
        process = self._process
        assert process is not None
        try:
            async with asyncio.timeout(DEATH_S):
                await process.wait_dead()
        except TimeoutError:
            if await self._is_healthy(process):
                return False
            _log.warning("engine does not answer and is killed", silent_s=HEALTH_S)
            await process.stop()
        return True

    async def _is_healthy(self, process: EngineProcess) -> bool:
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        try:
            async with self._http().get(f"{process.url}/health", timeout=timeout) as answer:
                return answer.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _read_figures(self, feeder: Feeder, slots: int) -> None:
        """Read the engine's figures every few seconds, and move the feeder's limit by them."""
        before, read_at = None, 0.0
        while True:
            await asyncio.sleep(READING_S)
            process = self._process
            assert process is not None
            timeout = aiohttp.ClientTimeout(total=_METRICS_S)
            try:
                url = f"{process.url}/metrics"
                async with self._http().get(url, headers=process.headers, timeout=timeout) as answer:
                    metrics = self._adapter.parse_metrics(await answer.text())
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                _log.debug("engine tells no figures", error=str(exc))
                continue
            now = time.monotonic()
            generated = metrics.generated_tokens
            self.reading = EngineReading(
                running=metrics.running,
                waiting=metrics.waiting,
                kv_cache_use=metrics.kv_cache_use,
                prompt_tokens=metrics.prompt_tokens,
                generated_tokens=generated,
                tokens_per_s=per_second(before, generated, now - read_at),
                ttft_s=metrics.ttft_s,
                tpot_s=metrics.tpot_s,
            )
            before, read_at = generated, now
            limit = next_limit(feeder.limit, running=metrics.running, waiting=metrics.waiting, slots=slots)
            if limit != feeder.limit:
                _log.info("concurrency moved", limit=limit, running=metrics.running, waiting=metrics.waiting)
                feeder.resize(limit)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            await self._process.stop()


def lost_its_port(message: str) -> bool:
    """Whether an engine that does not start found its port taken."""
    return any(each in message.lower() for each in _PORT_TAKEN)


def per_second(before: int | None, now: int | None, passed_s: float) -> float | None:
    """The rate between two counts; None where one is missing, or the engine counts from 0 again."""
    if before is None or now is None or now < before or passed_s <= 0:
        return None
    return (now - before) / passed_s


def _chunk(request: Request) -> HeldChunk:
    assert isinstance(request.owner, HeldChunk)
    return request.owner

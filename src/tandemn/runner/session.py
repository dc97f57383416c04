"""One replica's life, from the first call to the last: runs the parts beside each other and ends them in order."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

import structlog

from tandemn.errors import EngineFailed, TandemnError
from tandemn.fleet.remains import SPOOL
from tandemn.protocol.replicas import Goodbye, Heartbeat
from tandemn.runner.chunks import Chunks, HeldChunk, Phase
from tandemn.runner.ending import Ending
from tandemn.runner.engine_supervisor import EngineSupervisor
from tandemn.runner.feeder import Feeder
from tandemn.runner.heartbeat import Pulse
from tandemn.runner.intake import Intake
from tandemn.runner.lease_loop import LeaseLoop
from tandemn.runner.machine import Machine, find_nvidia_smi
from tandemn.runner.record import keep_result
from tandemn.runner.upload import Uploader

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from tandemn.client import ReplicaClient
    from tandemn.fleet.engines.engine import EngineAdapter
    from tandemn.protocol.replicas import Assignment, HeartbeatReply
    from tandemn.runner.feeder import Owner, Request, Result
    from tandemn.runner.notices import Notice

#: Where it ends for want of a control plane, nobody waits for it: there is time to store what it has.
SILENT_STORE_S = 60.0

#: In the replica's work folder.
ENGINE_LOG = "engine.log"

#: After a notice everything is stored within about ten seconds: the sum of these.
SETTLE_S, STORE_S, RELEASE_S, GOODBYE_S = 2.0, 5.0, 2.0, 2.0

#: Before the moment that a cloud's notice names, what cannot be finished any more is stored and given back.
NOTICE_MARGIN_S = 20.0

#: How often silence and the progress of a drain are looked at.
_WATCH_S = 0.25

_log = structlog.get_logger()


class Session:
    """Run one assignment to its end; `run` says how it ended."""

    def __init__(
        self, client: ReplicaClient, assignment: Assignment, adapter: EngineAdapter, folder: Path
    ) -> None:
        """Args: folder: the replica's own; the engine's log stays in it, all else is removed at the end."""
        self._client = client
        self._assignment = assignment
        self._state: Literal["starting", "running", "draining"] = "starting"
        self._notice: Notice | None = None
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._output_tokens = 0
        self._chunks = Chunks()
        self._engine = EngineSupervisor(adapter, assignment, client, folder / ENGINE_LOG, self._on_line)
        self._machine = Machine(find_nvidia_smi())
        self._feeder = Feeder(self._on_result, has_died=self._engine.has_died)
        self._uploader = Uploader(
            client, self._chunks, on_broken=self._fail, store_full_s=assignment.store_full_s
        )
        self._leases = LeaseLoop(client, self._chunks, self._feeder, self._on_orders)
        self._intake = Intake(
            client=client,
            assignment=assignment,
            chunks=self._chunks,
            feeder=self._feeder,
            folder=folder / SPOOL,
            on_line=self._on_line,
        )
        self._pulse = Pulse(client, self._report, self._on_reply, self._on_rejected)

    async def run(self) -> Ending:
        """Work until an order, a notice or a fault ends it; then store, release and take leave."""
        self._start("heartbeat", self._pulse.run(self._assignment.heartbeat_s))
        self._start("work", self._work())
        self._start("watch", self._watch())
        self._start("machine", self._machine.run())
        ending = await self._ending
        _log.info("ending", outcome=ending.outcome, code=ending.code, reason=ending.reason)
        await self._shut_down(ending)
        return ending

    def end(self, ending: Ending) -> None:
        """End the session; the first one to say so is heard."""
        if not self._ending.done():
            self._ending.set_result(ending)

    def heed(self, notice: Notice) -> None:
        """A cloud takes the instance away soon: finish what can be finished until then."""
        _log.warning("notice of preemption", action=notice.action, seconds=round(notice.at - time.time()))
        self._notice = notice
        ahead = [chunk for chunk in self._chunks if chunk.phase is Phase.LEASED]
        for chunk in ahead:
            self._chunks.forget(chunk)
        self._start("give back", self._give_back(ahead))
        self._drain()

    async def _work(self) -> None:
        await self._engine.start()
        self._state = "running"
        self._pulse.beat_now()
        self._start("engine", self._engine.run(self._feeder))
        self._start("sweep", self._feeder.sweep())
        self._start("intake", self._intake.run())
        self._start("flush", self._uploader.run(self._assignment.flush_s))
        self._start("lease", self._leases.run())

    def _start(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks[name] = task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Supervise: no part of the runner ends by an error unheard."""
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, TandemnError):
            self._fail(error)
        elif isinstance(error, OSError):
            self.end(Ending(outcome="failed", code="replica_disk", reason=f"{task.get_name()}: {error}"))
        elif error is not None:
            _log.error("runner fault", part=task.get_name(), exc_info=error)
            self.end(Ending(outcome="failed", code="runner_fault", reason=f"{task.get_name()}: {error!r}"))

    def _fail(self, error: TandemnError) -> None:
        # The next step of an engine's error is to read its log, which goes with this replica's folder.
        reason = error.message if isinstance(error, EngineFailed) else str(error)
        self.end(Ending(outcome="failed", code=error.code, reason=reason))

    def _on_rejected(self, error: TandemnError) -> None:
        self.end(Ending(outcome="failed", code=error.code, reason=error.message, is_rejected=True))

    def _on_result(self, request: Request, result: Result) -> None:
        chunk = _chunk_of(request.owner)
        self._output_tokens += result.usage.completion_tokens
        try:
            keep_result(self._assignment.job_id, chunk, request, result)
        except OSError as exc:
            self.end(Ending(outcome="failed", code="replica_disk", reason=f"cannot keep answers: {exc}"))
            return
        self._on_line(chunk)

    def _on_line(self, chunk: HeldChunk) -> None:
        if chunk.phase is Phase.BEGUN and chunk.has_all and not chunk.is_dropped:
            self._uploader.finish(chunk)

    async def _report(self) -> Heartbeat:
        return Heartbeat(
            state=self._state,
            chunks=[chunk.progress() for chunk in self._chunks],
            engine=self._engine.reading,
            machine=self._machine.reading,
            requests_done=self._feeder.done,
            output_tokens=self._output_tokens,
            note=self._note(),
        )

    def _note(self) -> str | None:
        if self._state == "starting":
            return "loading the model"
        if not self._engine.is_up:
            return "the engine died and is started again"
        return self._uploader.note

    def _on_reply(self, reply: HeartbeatReply) -> None:
        for number in reply.lost:
            if chunk := self._chunks.get(number):
                self._chunks.drop(chunk, why="heartbeat")
        self._on_orders(reply.orders)

    def _on_orders(self, orders: str) -> None:
        if orders == "stop":
            self.end(Ending(outcome="completed"))
        elif orders == "drain":
            self._drain()

    def _drain(self) -> None:
        if self._state == "draining":
            return
        if self._state == "starting":
            self.end(self._drained())
            return
        self._state = "draining"
        self._leases.drain()
        self._pulse.beat_now()

    def _drained(self) -> Ending:
        if self._notice is not None:
            return Ending(outcome="preempted", reason=f"the cloud's notice: {self._notice.action}")
        return Ending(outcome="completed")

    async def _watch(self) -> None:
        """End a drain when all is done or time is up, and end where the control plane stays silent."""
        silence_s = self._assignment.silence_s
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._state == "draining" and not len(self._chunks) and self._tasks["lease"].done():
                self.end(self._drained())
            if self._notice is not None and time.time() > self._notice.at - NOTICE_MARGIN_S:
                self.end(self._drained())
            silent_s = self._pulse.silent_s
            # What is held is finished first, but not for ever: nobody may be there to want it.
            is_done = self._feeder.is_idle and not self._chunks.unsent
            if silent_s > silence_s and (is_done or silent_s > 2 * silence_s):
                reason = f"the control plane has been silent for {silent_s:.0f} s"
                self.end(Ending(outcome="failed", code="server_silent", reason=reason))

    async def _shut_down(self, ending: Ending) -> None:
        await self._cancel("work", "lease", "intake", "watch", "flush")
        if not ending.is_rejected:
            if self._engine.is_up:
                await self._feeder.settle(SETTLE_S)
            if ending.code == "server_silent":
                await _at_most(SILENT_STORE_S, self._uploader.store_unheard())
            await _at_most(STORE_S, self._uploader.finish_up(STORE_S / 2))
            await _at_most(RELEASE_S, self._release())
        await self._cancel("engine", "sweep", "heartbeat", "machine", "give back")
        await self._feeder.close()
        await self._engine.stop()
        if not ending.is_rejected:
            goodbye = Goodbye(outcome=ending.outcome, code=ending.code, reason=ending.reason)
            await _at_most(GOODBYE_S, self._client.goodbye(goodbye))
        for chunk in self._chunks:
            self._chunks.forget(chunk)

    async def _release(self) -> None:
        """Give back what is not done, so that others have it at once."""
        held = list(self._chunks)
        await self._give_back(held)
        for chunk in held:
            self._chunks.forget(chunk)

    async def _give_back(self, chunks: list[HeldChunk]) -> None:
        """Release leases; those that are gone already, or cannot be given back now, expire by themselves."""
        calls = (self._client.release(chunk.claim) for chunk in chunks)
        await asyncio.gather(*calls, return_exceptions=True)

    async def _cancel(self, *names: str) -> None:
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _chunk_of(owner: Owner) -> HeldChunk:
    assert isinstance(owner, HeldChunk)
    return owner


async def _at_most(seconds: float, work: Coroutine[None, None, None]) -> None:
    """Do one step of the ending; neither an error nor slowness of it keeps the next from its turn."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except (TandemnError, TimeoutError, OSError) as exc:
        _log.warning("ending goes on", error=str(exc) or type(exc).__name__)

"""Keeps every job moving: one step at a time per job, jobs beside each other, at a tick or when woken."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tandemn.control.reconcilers import ending, fleet, preparation
from tandemn.control.reconcilers.pacing import Pacer
from tandemn.control.reconcilers.sharing import Places
from tandemn.control.store import jobs
from tandemn.errors import Conflict, InvalidInput, Retryable, Superseded, TandemnError
from tandemn.protocol.jobs import JobState

if TYPE_CHECKING:
    from tandemn.control.services import Services

_log = structlog.get_logger()

#: How often a job is looked at when nothing wakes it.
TICK_S = 1.0
#: Between two rounds, however often they are woken: a job of small chunks completes dozens a second.
BREATH_S = 0.1
#: Failed steps of one job in a row, a tick apart, before the job is ended as failed.
FAILED_STEPS = 30
#: How long steps under way may go on when the control plane is to end.
HALT_S = 3.0
#: Jobs whose steps run at a time.
PARALLEL = 16
#: How often a computing job's queue is compared with its chunk table.
AUDIT_S = 30.0
#: Jobs of which the time of the last audit is kept before ended ones are forgotten.
AUDITS_KEPT = 10_000


class Supervisor:
    """Owns the tasks; a job's step never overlaps with itself."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._steps: dict[str, asyncio.Task[None]] = {}
        self._passed_over: set[str] = set()
        self._failures: dict[str, int] = {}
        self._room = asyncio.Semaphore(PARALLEL)
        self._audited: dict[str, float] = {}
        self._places = Places(services)
        self._pacer = Pacer(services, self._places)
        self._is_halted = False
        self.failed_steps = 0

    async def halt(self) -> None:
        """Begin no step any more, and return when none is under way: from now on nothing is launched."""
        self._is_halted = True
        if self._steps:
            # A launch is over in a moment; what takes longer (assembling) is repeated by the next server.
            await asyncio.wait(list(self._steps.values()), timeout=HALT_S)
        for task in list(self._steps.values()):
            task.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)

    async def run(self) -> None:
        """Go on until cancelled or halted; then the steps under way are cancelled, too."""
        try:
            while not self._is_halted:
                # From before the round on: what changes during it asks for another.
                woken = asyncio.ensure_future(self._services.pulse.wait("*", TICK_S))
                try:
                    await self._round()
                except TandemnError as exc:
                    _log.warning("cannot look for work", error=str(exc))
                await asyncio.sleep(BREATH_S)
                await woken
        finally:
            for task in self._steps.values():
                task.cancel()
            await asyncio.gather(*self._steps.values(), return_exceptions=True)

    async def _round(self) -> None:
        for job_id in await self._places.look():
            if job_id in self._steps:
                self._passed_over.add(job_id)
            elif not self._is_halted:
                task = asyncio.create_task(self._step(job_id), name=f"step of {job_id}")
                self._steps[job_id] = task
                task.add_done_callback(partial(self._forget, job_id))

    def _forget(self, job_id: str, _task: asyncio.Task[None]) -> None:
        self._steps.pop(job_id, None)
        if job_id in self._passed_over:
            # It may have changed after its step had looked.
            self._passed_over.discard(job_id)
            self._services.pulse.beat("*")
        if len(self._audited) > AUDITS_KEPT:
            self._audited = {known: at for known, at in self._audited.items() if known in self._steps}

    async def _step(self, job_id: str) -> None:
        """One step, with its failure counted: a job that cannot be moved ends instead of hanging."""
        # A task of its own, so that nobody else's lines say so.
        structlog.contextvars.bind_contextvars(job_id=job_id)
        async with self._room:
            try:
                while await step(self._services, job_id, self._places):
                    pass
                await self._pace(job_id)
                await self._audit(job_id)
                self._failures.pop(job_id, None)
            except Superseded:
                pass  # the record moved on; the next round sees where to
            except Exception as exc:  # noqa: BLE001 - a supervisor: one job's fault must not stop the others
                self.failed_steps += 1
                count = self._failures[job_id] = self._failures.get(job_id, 0) + 1
                passing = isinstance(exc, Retryable)
                _log.warning(
                    "a step failed",
                    job_id=job_id,
                    error=str(exc),
                    count=count,
                    # A refusal of what the user asked for is no fault of ours: its message says all.
                    exc_info=None if passing or isinstance(exc, InvalidInput) else exc,
                )
                if count >= FAILED_STEPS or (isinstance(exc, TandemnError) and not passing):
                    with suppress(Retryable):
                        await preparation.fail(self._services, job_id, exc)

    async def _pace(self, job_id: str) -> None:
        """Keep its pace; a job that cannot be paced goes on with the replicas that it has."""
        try:
            await self._pacer.step(job_id)
        except Superseded:
            pass
        except Exception as exc:  # noqa: BLE001 - a supervisor: advice that fails must not end the job
            self.failed_steps += 1
            passing = isinstance(exc, Retryable)
            _log.warning("not paced", job_id=job_id, error=str(exc), exc_info=None if passing else exc)

    async def _audit(self, job_id: str) -> None:
        """See now and then that the queue still knows every unfinished chunk: a hang is worse than a look."""
        now = self._services.clock.now()
        if now - self._audited.setdefault(job_id, now) < AUDIT_S:
            return
        self._audited[job_id] = now
        with suppress(Conflict):
            await self._services.desk.open(job_id)


async def step(services: Services, job_id: str, places: Places) -> bool:
    """Move one job on; True: it moved, look again at once."""
    job = await services.database.run(jobs.get, job_id)
    match job.state:
        case JobState.VALIDATING:
            return await preparation.validate(services, job)
        case JobState.PLANNING:
            return await preparation.plan(services, job)
        case JobState.WAITING | JobState.LAUNCHING | JobState.RUNNING | JobState.CANCELLING:
            return await fleet.step(services, job, places)
        case JobState.ASSEMBLING:
            await fleet.step(services, job, places)
            return await ending.step(services, job)
        case _:
            return await fleet.step(services, job, places)

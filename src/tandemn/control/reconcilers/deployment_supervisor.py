"""Keeps every deployment moving: one action at a time for each part, parts beside each other, when they are due."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tandemn.control.reconcilers import deployments as reconciler
from tandemn.control.store import deployments
from tandemn.control.store.parts import ROUTER
from tandemn.errors import Retryable, TandemnError

if TYPE_CHECKING:
    from tandemn.control.reconcilers.deployments import Hands
    from tandemn.control.services import Pulse
    from tandemn.control.store.deployments import Pending

_log = structlog.get_logger()

#: How often the records are read when nothing wakes the supervisor and nothing is due.
TICK_S = 1.0
#: Between two rounds, however often they are woken.
BREATH_S = 0.05
#: Wait after a fault of our own in a part's step, doubled by each further one up to the longest.
FAULT_S = 1.0
LONGEST_FAULT_S = 60.0
#: Calls of providers at a time.
PARALLEL = 32
#: How long calls under way may go on when the control plane is to end; the next one repeats them.
HALT_S = 3.0
#: How long cancelled calls have for letting go.
CANCEL_S = 3.0

Key = tuple[str, str]


@dataclass(slots=True)
class _Memory:
    """What need not survive: when a part of which nothing has changed is looked at again."""

    version: int
    not_before: float
    faults: int = 0


class DeploymentSupervisor:
    """Owns the tasks.

    Args:
        hands: what parts are moved with.
        pulse: wakes it, under the name `*`; is told each deployment that has moved.
    """

    def __init__(self, hands: Hands, pulse: Pulse) -> None:
        self._hands = hands
        self._pulse = pulse
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._begun: dict[Key, Pending] = {}
        self._memory: dict[Key, _Memory] = {}
        self._pushing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._room = asyncio.Semaphore(PARALLEL)
        self._is_halted = False

    async def halt(self) -> None:
        """Begin nothing any more, and return when nothing is under way."""
        self._is_halted = True
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=HALT_S)
        await self._cancel()

    async def run(self) -> None:
        """Go on until cancelled or halted."""
        try:
            await self._sweep_keys()
            while not self._is_halted:
                # From before the round on: what changes during it asks for another.
                woken = asyncio.ensure_future(self._pulse.wait("*", TICK_S))
                next_at = None
                try:
                    next_at = await self._round()
                except TandemnError as exc:
                    _log.warning("cannot look for deployments", error=str(exc))
                if next_at is not None:
                    wait_s = max(0.0, next_at - self._hands.clock.now())
                    await asyncio.wait([woken], timeout=wait_s)
                else:
                    await woken
                woken.cancel()
                await asyncio.sleep(BREATH_S)
        finally:
            await self._cancel()

    async def _round(self) -> float | None:
        """Begin what is due; return when the next of the others will be."""
        now = self._hands.clock.now()
        rows = await self._hands.database.run(deployments.pending)
        found = {(each.service_name, each.part): each for each in rows}
        self._memory = {key: kept for key, kept in self._memory.items() if key in found}
        later: list[float] = []
        for key, part in found.items():
            if key in self._tasks:
                task = self._tasks[key]
                if part.is_deleting and not self._begun[key].is_deleting and not task.cancelling():
                    # A create may take minutes; what it has made until now is deleted by its name.
                    task.cancel()
                continue
            at = self._due(key, part)
            if at > now:
                later.append(at)
            elif not self._is_halted:
                task = asyncio.create_task(self._step(key, part), name=f"{key[1]} of {key[0]}")
                self._tasks[key], self._begun[key] = task, part
                task.add_done_callback(partial(self._forget, key))
        return min(later, default=None)

    def _due(self, key: Key, part: Pending) -> float:
        kept = self._memory.get(key)
        return kept.not_before if kept is not None and kept.version == part.version else part.not_before

    def _forget(self, key: Key, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        self._begun.pop(key, None)
        self._pulse.beat(key[0])

    async def _step(self, key: Key, part: Pending) -> None:
        """Move a part, then tell the router what it should know."""
        service_name, name = key
        faults = self._memory[key].faults if key in self._memory else 0
        async with self._room:
            try:
                again = await reconciler.move(self._hands, service_name, name)
                if again is not None:
                    self._memory[key] = _Memory(part.version, again)
                if again is None or name == ROUTER:
                    async with self._pushing[service_name]:
                        await reconciler.push(self._hands, service_name)
                    await self._forget_keys(service_name)
            except Exception as exc:  # noqa: BLE001 - a supervisor: one part's fault must not stop the others
                passing = isinstance(exc, Retryable)
                _log.warning(
                    "a step failed",
                    service_name=service_name,
                    part=name,
                    error=str(exc),
                    exc_info=None if passing else exc,
                )
                wait_s = min(FAULT_S * 2 ** min(faults, 10), LONGEST_FAULT_S)
                self._memory[key] = _Memory(part.version, self._hands.clock.now() + wait_s, faults + 1)

    async def _forget_keys(self, service_name: str) -> None:
        """Remove the keys of a deployment that is gone."""
        record = await self._hands.database.run(deployments.get, service_name)
        if record.state.has_ended:
            self._hands.keyring.forget(service_name)
            self._pushing.pop(service_name, None)

    async def _sweep_keys(self) -> None:
        """Remove the keys of deployments that a killed control plane had deleted, but not their keys."""
        for name in self._hands.keyring.names():
            # One that this database does not know may live in another: its keys are kept.
            with suppress(TandemnError):
                await self._forget_keys(name)

    async def _cancel(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            # An SDK that does not let itself be cancelled must not keep the control plane from ending.
            await asyncio.wait(tasks, timeout=CANCEL_S)

"""A machine of a replica that spans several, but not its head: runs its part of the engine for as long as the replica lives.

The head's runner speaks to the control plane, feeds the engine and says how it goes. A follower asks only two things:
what to run, and, each time its part of the engine has ended, whether there is still anything to run it for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from tandemn.errors import InvalidInput, TandemnError
from tandemn.fleet.engines.engine import EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.runner.retry import patiently

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from tandemn.client import ReplicaClient
    from tandemn.fleet.engines.engine import EngineAdapter
    from tandemn.protocol.replicas import Assignment

_log = structlog.get_logger()

#: Pause before the part is started again, in seconds: the head's takes as long to notice and do the same.
AGAIN_S = 5.0


async def follow(
    client: ReplicaClient,
    assignment: Assignment,
    adapter: EngineAdapter,
    log_path: Path,
    told: asyncio.Event,
    *,
    again_s: float = AGAIN_S,
) -> int:
    """Run this machine's part of the engine, again whenever it ends; return 0 when the replica is no more, or `told`.

    A control plane that stays silent for the assignment's `silence_s` ends it, too.
    """
    spec = EngineSpec(
        engine=adapter.name,
        model=assignment.model,
        tp=assignment.tp,
        pp=assignment.pp,
        dp=assignment.dp,
        extra_args=tuple(assignment.engine_args),
    )
    while not told.is_set():
        process = EngineProcess(adapter, spec, log_path)
        await process.start()
        _log.info("engine part started", pid=process.pid)
        try:
            await _first(process.wait_dead(), told.wait())
        finally:
            await process.stop()
        if told.is_set():
            break
        _log.info("engine part ended", status=process.exit_status)
        await _first(asyncio.sleep(again_s), told.wait())
        try:
            async with asyncio.timeout(assignment.silence_s):
                await patiently(client.hello, "hello")
        except InvalidInput as exc:
            _log.info("the replica is no more", reason=exc.message)
            return 0
        except (TandemnError, TimeoutError) as exc:
            _log.error("the control plane is silent", error=str(exc))
            return 1
    return 0


async def _first(*waits: Coroutine[None, None, object]) -> None:
    """Return when the first of these is over."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""The runner's process: arguments, log, signals; then one session."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from tandemn import logs, server_records
from tandemn import settings as settings_module
from tandemn.client import ReplicaClient
from tandemn.clock import SystemClock
from tandemn.errors import TandemnError
from tandemn.fleet.engines.adapters import adapters, choose
from tandemn.fleet.engines.engine import EngineName
from tandemn.fleet.remains import SPOOL
from tandemn.protocol.replicas import Goodbye
from tandemn.runner.ending import Ending
from tandemn.runner.follower import follow
from tandemn.runner.notices import spot_notice
from tandemn.runner.retry import patiently
from tandemn.runner.session import ENGINE_LOG, GOODBYE_S, Session
from tandemn.settings import LogFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.protocol.replicas import Assignment
    from tandemn.settings import Settings

#: A runner that never reaches its control plane ends after this time.
HELLO_S = 300.0

_log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one replica; return the exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _options(arguments)
    settings = settings_module.load()
    # Always for programs: `tandemn logs` leads each line by its replica, whatever the control plane's own log is like.
    logs.configure(LogFormat.JSON)
    structlog.contextvars.bind_contextvars(replica_id=options.replica)
    if settings.replica_token is None:
        _log.error("TANDEMN_REPLICA_TOKEN is not set")
        return 2
    token = settings.replica_token.get_secret_value()
    first, *others = options.server
    look = partial(_servers_of, options.home) if options.home else None
    client = ReplicaClient(first, options.replica, token, others=others, look=look)
    # What a killed predecessor left in this folder is of no use: its parts are in the store.
    spool = options.work / SPOOL
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    try:
        return uvloop.run(_run(client, settings, options.work))
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tandemn.runner", description=__doc__)
    parser.add_argument(
        "--server",
        required=True,
        action="append",
        help="URL of the control plane; again for each other that may be called",
    )
    parser.add_argument("--replica", required=True, help="id of this replica")
    parser.add_argument("--home", type=Path, help="state folder whose control planes may be called, too")
    parser.add_argument("--work", required=True, type=Path, help="folder for answers on their way")
    return parser.parse_args(arguments)


def _servers_of(home: Path) -> list[str]:
    return [record.url for record in server_records.living(home)]


async def _run(client: ReplicaClient, settings: Settings, folder: Path) -> int:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with client:
        life = asyncio.create_task(_live(client, settings, folder, told))
        return await life


async def _live(client: ReplicaClient, settings: Settings, folder: Path, told: asyncio.Event) -> int:
    try:
        assignment = await _hello(client, told)
    except (TandemnError, TimeoutError) as exc:
        _log.error("no assignment", error=str(exc) or "the control plane does not answer")
        return 1
    if assignment is None:
        return 0
    client.know_servers(assignment.servers)
    structlog.contextvars.bind_contextvars(job_id=assignment.job_id)
    _log.info("assignment", engine=assignment.engine, model=assignment.model)
    try:
        name = choose(assignment.model, EngineName(assignment.engine))
    except ValueError:
        reason = f"no engine is called {assignment.engine}"
        with contextlib.suppress(TandemnError):
            await client.goodbye(Goodbye(outcome="failed", code="unknown_engine", reason=reason))
        return 1
    adapter = adapters(settings)[name]
    if settings.node_rank > 0:
        return await follow(client, assignment, adapter, folder / ENGINE_LOG, told)
    session = Session(client, assignment, adapter, folder)
    watchers = [asyncio.create_task(_on_signal(session, told))]
    if settings.spot_notices:
        watchers.append(asyncio.create_task(_on_notice(session, settings.metadata_url)))
    try:
        ending = await session.run()
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    return 1 if ending.outcome == "failed" else 0


async def _hello(client: ReplicaClient, told: asyncio.Event) -> Assignment | None:
    """Ask for the assignment; None where a signal came first."""
    async with asyncio.timeout(HELLO_S):
        asked = asyncio.ensure_future(patiently(client.hello, "hello"))
        stopped = asyncio.ensure_future(told.wait())
        try:
            await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
        finally:
            asked.cancel()
            stopped.cancel()
    with contextlib.suppress(TandemnError, TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            await client.goodbye(Goodbye(outcome="preempted", reason="SIGTERM"))
    return None


async def _on_signal(session: Session, told: asyncio.Event) -> None:
    await told.wait()
    # Whoever kills a replica by intent has recorded that before; every other SIGTERM is a preemption.
    session.end(Ending(outcome="preempted", reason="SIGTERM"))


async def _on_notice(session: Session, metadata_url: str) -> None:
    session.heed(await spot_notice(metadata_url, SystemClock()))

"""`tandemn logs` and `tandemn events`: what the replicas wrote, and what happened to the job."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.text import printable
from tandemn.protocol.jobs import EventView

app = typer.Typer(rich_markup_mode=None)

#: The control plane's greatest page of events.
PAGE = 1000


@app.command("logs")
def logs(
    *,
    job: options.JobId,
    replica: Annotated[
        str | None, typer.Option("--replica", metavar="R", help="Only this replica's log.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, max=100_000, help="Last lines of each log.")] = 200,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show the logs of a job's replicas, each line led by its replica.

    Examples:
        tandemn logs job-4f2a --tail 50
        tandemn logs job-4f2a --replica r0 -f
    """
    asyncio.run(_logs(job, replica, tail=tail, is_following=follow, as_json=as_json))


@app.command("events")
def events(
    *,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="NAME", help="Only what this key brought about.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show what happened to a job, or on the whole control plane, oldest first; with --json one object an event.

    Without JOB it takes an admin's key.

    Examples:
        tandemn events job-4f2a
        tandemn events --actor alice --json
    """
    asyncio.run(_events(job, actor, as_json=as_json))


async def _logs(job: str, replica: str | None, *, tail: int, is_following: bool, as_json: bool) -> None:
    async with connect() as client:
        blocks = client.logs(job, replica=replica, tail=tail, follow=is_following)
        if not as_json:
            async for block in blocks:
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            return
        async for line in _lines(blocks):
            name, _, text = line.partition(" ")
            emit({"replica_id": name, "line": text})


async def _lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Cut a stream at line feeds only: other separators may stand inside a line."""
    rest = b""
    async for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def _events(job: str | None, actor: str | None, *, as_json: bool) -> None:
    after = 0
    async with connect() as client:
        while True:
            if job is None:
                page = await client.server_events(after=after, limit=PAGE, actor=actor)
            else:
                page = await client.events(job, after=after, limit=PAGE)
            for event in page.events:
                if actor is not None and event.actor != actor:
                    continue
                if as_json:
                    emit(event)
                else:
                    say(_event_line(event))
            if page.next_after is None:
                return
            after = page.next_after


def _event_line(event: EventView) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    parts = [at, event.kind, event.replica_id or event.job_id, event.actor and f"by {event.actor}"]
    details = [f"{name}={value}" for name, value in event.data.items() if value is not None]
    return printable("  ".join([part for part in parts if part] + details))

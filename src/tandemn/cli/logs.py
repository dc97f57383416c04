"""`tandemn logs` and `tandemn events`: what replicas and backends wrote, and what happened."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.text import printable
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.protocol.jobs import EventView

app = typer.Typer(rich_markup_mode=None)

#: The control plane's greatest page of events.
PAGE = 1000


Job = Annotated[str | None, typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one.")]


@app.command("logs")
def logs(
    *,
    job: Job = None,
    service_name: options.ServiceName = None,
    replica: Annotated[
        str | None, typer.Option("--replica", metavar="R", help="Only this replica's log, of a job.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="B", help="Only this backend's log, or the router's."),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it has ended.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, max=100_000, help="Last lines of each log.")] = 200,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show the logs of a job's replicas or a deployment's backends and router, each line led by whose it is.

    Examples:
        tandemn logs job-4f2a --replica r0 -f
        tandemn logs --service-name chat --backend spot --tail 50
    """
    options.one_of(job, service_name)
    if (backend is not None and job is not None) or (replica is not None and service_name is not None):
        raise InvalidInput(
            "--replica is for jobs, --backend for deployments", code="wrong_usage", param="replica"
        )
    source = _Source(job, service_name, replica or backend)
    asyncio.run(_logs(source, tail=tail, is_following=follow, as_json=as_json))


@app.command("events")
def events(
    *,
    job: Job = None,
    service_name: options.ServiceName = None,
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="NAME", help="Only what this key brought about.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show what happened to a job or deployment, or on the whole control plane, oldest first.

    With --json one object an event. Without JOB or --service-name it takes an admin's key.

    Examples:
        tandemn events job-4f2a
        tandemn events --service-name chat --json
        tandemn events --actor alice --json
    """
    if job is not None or service_name is not None:
        options.one_of(job, service_name)
    asyncio.run(_events(job, service_name, actor, as_json=as_json))


@dataclass(frozen=True, slots=True)
class _Source:
    """Whose logs: a job's or a deployment's, and of which part of it."""

    job: str | None
    service_name: str | None
    part: str | None

    def read(self, client: UserClient, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        if self.job is not None:
            return client.logs(self.job, replica=self.part, tail=tail, follow=follow)
        assert self.service_name is not None, "one of the two was given"
        return client.deployment_logs(self.service_name, part=self.part, tail=tail, follow=follow)


async def _logs(source: _Source, *, tail: int, is_following: bool, as_json: bool) -> None:
    head = "replica_id" if source.job is not None else "part"
    async with connect() as client:
        blocks = source.read(client, tail=tail, follow=is_following)
        if not as_json:
            async for block in blocks:
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            return
        async for line in _lines(blocks):
            name, _, text = line.partition(" ")
            emit({head: name, "line": text})


async def _lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Cut a stream at line feeds only: other separators may stand inside a line."""
    rest = b""
    async for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def _events(job: str | None, service_name: str | None, actor: str | None, *, as_json: bool) -> None:
    after = 0
    async with connect() as client:
        while True:
            if service_name is not None:
                page = await client.deployment_events(service_name, after=after, limit=PAGE)
            elif job is not None:
                page = await client.events(job, after=after, limit=PAGE)
            else:
                page = await client.server_events(after=after, limit=PAGE, actor=actor)
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

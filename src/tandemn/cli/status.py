"""`tandemn status` and `tandemn list`: how one job stands, and which there are."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from tandemn.cli import options, report
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.text import table
from tandemn.errors import InvalidInput
from tandemn.protocol.jobs import JobList, JobState

app = typer.Typer(rich_markup_mode=None)

#: Beside the states themselves.
STATE_GROUPS = ("active", "ended")
#: The control plane's greatest page.
PAGE = 100


@app.command("status")
def status(
    *,
    job: options.JobId,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show how one job stands: state and reason, requests, chunks, pace, replicas, cost.

    Examples:
        tandemn status job-4f2a
        tandemn status job-4f2a --json
    """
    asyncio.run(_status(job, as_json=as_json))


@app.command("list")
def list_(
    *,
    state: Annotated[
        str | None, typer.Option("--state", help="Only jobs in this state; also `active` and `ended`.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")] = 50,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """List the jobs, newest first.

    Examples:
        tandemn list
        tandemn list --state active --json
    """
    known = [*STATE_GROUPS, *(str(one) for one in JobState)]
    if state is not None and state not in known:
        raise InvalidInput(
            f"--state: {state!r} is no state of a job",
            code="wrong_usage",
            next_step=f"one of {', '.join(known)}",
            param="state",
        )
    asyncio.run(_list(state, limit, as_json=as_json))


async def _status(job: str, *, as_json: bool) -> None:
    async with connect() as client:
        current = await client.job(job)
    if as_json:
        emit(current)
    else:
        say(report.status_lines(current, time.time()))


async def _list(state: str | None, limit: int, *, as_json: bool) -> None:
    found = JobList(jobs=[])
    async with connect() as client:
        while len(found.jobs) < limit:
            page = await client.list_jobs(
                limit=min(limit - len(found.jobs), PAGE), after=found.next_after, state=state
            )
            found = JobList(jobs=[*found.jobs, *page.jobs], next_after=page.next_after)
            if page.next_after is None:
                break
    if as_json:
        emit(found)
    elif found.jobs:
        say(table(report.SUMMARY_HEADS, report.summary_rows(found.jobs, time.time())))
    else:
        say("no jobs" if state is None else f"no jobs that are {state}")

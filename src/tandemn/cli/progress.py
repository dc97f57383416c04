"""`tandemn progress`: watch a job until it ends."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tandemn.cli import options, report
from tandemn.cli.connection import connect
from tandemn.cli.display import job_display
from tandemn.cli.follow import follow
from tandemn.cli.output import say
from tandemn.client import UserClient
from tandemn.errors import NotFound

app = typer.Typer(rich_markup_mode=None)


@app.command("progress")
def progress(
    *,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id; the latest active job where none is given.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Watch a job until it ends: done of total, pace, expected end against the deadline, replicas.

    A live bar on a terminal, plain lines elsewhere; with --json one JSON object for every change. Ctrl-C
    ends the watching, not the job. The exit code is the job's: 0 completed, 1 failed or cancelled, 2 bad
    input, 3 expired or over budget.

    Examples:
        tandemn progress
        tandemn progress job-4f2a
        tandemn progress job-4f2a --json
    """
    return asyncio.run(_progress(job, as_json=as_json))


async def _progress(job: str | None, *, as_json: bool) -> int:
    async with connect() as client:
        job_id = job or await _latest(client)
        with job_display(as_json=as_json) as show:
            status = await follow(client, job_id, show=show)
    if not as_json:
        say(report.final_lines(status, None))
    return report.exit_code(status)


async def _latest(client: UserClient) -> str:
    found = await client.list_jobs(limit=1, state="active")
    if not found.jobs:
        raise NotFound(
            "no job is under way",
            code="no_active_job",
            next_step="`tandemn list` shows those that have ended",
        )
    return found.jobs[0].job_id

"""`tandemn cancel` and `tandemn destroy`: end jobs, and all that runs for them."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.display import job_display
from tandemn.cli.follow import follow
from tandemn.cli.output import emit, say
from tandemn.cli.report import done_of
from tandemn.cli.text import plural
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.protocol.jobs import JobStatus

app = typer.Typer(rich_markup_mode=None)

#: The control plane's greatest page.
PAGE = 100

Wait = Annotated[bool, typer.Option("--wait", help="Return when it has ended.")]


@app.command("cancel")
def cancel(
    *,
    job: options.JobId,
    wait: Wait = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Cancel a job: finished answers are kept, the other requests become error lines.

    Examples:
        tandemn cancel job-4f2a
        tandemn cancel job-4f2a --wait && tandemn download job-4f2a -o answers.jsonl
    """
    asyncio.run(_cancel(job, is_waiting=wait, as_json=as_json))


@app.command("destroy")
def destroy(
    *,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every job that is active or has replicas left.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """End a job and every replica of it, those that --persist kept too. A terminal is asked first.

    Examples:
        tandemn destroy job-4f2a
        tandemn destroy --all --yes
    """
    if everything == (job is not None):
        raise InvalidInput(
            "give one JOB, or --all",
            code="wrong_usage",
            next_step="`tandemn list --state active` shows the jobs",
        )
    return asyncio.run(_destroy(job, is_asking=not yes and sys.stdin.isatty(), as_json=as_json))


async def _cancel(job: str, *, is_waiting: bool, as_json: bool) -> None:
    async with connect() as client:
        status = await client.cancel(job)
        if is_waiting and not status.state.has_ended:
            with job_display(stream=sys.stderr) as show:
                status = await follow(client, status.job_id, show=show)
    _tell([status], as_json=as_json)


async def _destroy(job: str | None, *, is_asking: bool, as_json: bool) -> int:
    async with connect() as client:
        ids = await _live(client) if job is None else [(await client.job(job)).job_id]
        if ids and is_asking and not _agrees(ids):
            return 1
        _tell([await client.destroy(one) for one in ids], as_json=as_json)
    return 0


async def _live(client: UserClient) -> list[str]:
    ids: list[str] = []
    after = None
    while True:
        page = await client.list_jobs(limit=PAGE, after=after, state="live")
        ids += [one.job_id for one in page.jobs]
        after = page.next_after
        if after is None:
            return ids


def _agrees(ids: list[str]) -> bool:
    return typer.confirm(f"End {plural(len(ids), 'job')} and all replicas ({', '.join(ids)})?", err=True)


def _tell(statuses: list[JobStatus], *, as_json: bool) -> None:
    if as_json:
        emit({"jobs": [status.model_dump() for status in statuses]})
    elif statuses:
        say(f"{status.job_id} {status.state}, {done_of(status.requests)} done" for status in statuses)
    else:
        say("nothing runs")

"""`tandemn cancel` and `tandemn destroy`: end jobs and deployments, and all that runs for them."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.display import job_display
from tandemn.cli.ending import end_deployments
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
    service_name: options.ServiceName = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Every deployment, and every job that is active or has replicas left."),
    ] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """End a deployment, or a job, and all that runs for it. A terminal is asked first.

    Returns when every provider has said that nothing of a deployment is left. A delete that fails is shown, and
    tried again for ever, also when this command has ended.

    Examples:
        tandemn destroy job-4f2a
        tandemn destroy --service-name chat
        tandemn destroy --all --yes
    """
    if sum((everything, job is not None, service_name is not None)) != 1:
        raise InvalidInput(
            "give one JOB, or --service-name S, or --all",
            code="wrong_usage",
            next_step="`tandemn list --state active` shows jobs and deployments",
        )
    return asyncio.run(_destroy(job, service_name, is_asking=not yes and sys.stdin.isatty(), as_json=as_json))


async def _cancel(job: str, *, is_waiting: bool, as_json: bool) -> None:
    async with connect() as client:
        status = await client.cancel(job)
        if is_waiting and not status.state.has_ended:
            with job_display(stream=sys.stderr) as show:
                status = await follow(client, status.job_id, show=show)
    _tell([status], as_json=as_json)


async def _destroy(job: str | None, service_name: str | None, *, is_asking: bool, as_json: bool) -> int:
    async with connect() as client:
        ids, names = await _meant(client, job, service_name)
        if (ids or names) and is_asking and not _agrees(ids, names):
            return 1
        statuses = [await client.destroy(one) for one in ids]
        gone = await end_deployments(client, names, as_json=as_json)
    if as_json:
        emit(
            {
                "jobs": [each.model_dump() for each in statuses],
                "deployments": [each.model_dump() for each in gone],
            }
        )
    else:
        say(f"{each.job_id} {each.state}, {done_of(each.requests)} done" for each in statuses)
        say(f"{each.service_name} {each.state}" for each in gone)
        if not statuses and not gone:
            say("nothing runs")
    return 0


async def _meant(
    client: UserClient, job: str | None, service_name: str | None
) -> tuple[list[str], list[str]]:
    """Ids of the jobs and names of the deployments that are to end."""
    if job is not None:
        return [(await client.job(job)).job_id], []
    if service_name is not None:
        return [], [(await client.deployment(service_name)).service_name]
    found = (await client.list_deployments()).deployments
    return await _live(client), [each.service_name for each in found]


async def _live(client: UserClient) -> list[str]:
    ids: list[str] = []
    after = None
    while True:
        page = await client.list_jobs(limit=PAGE, after=after, state="live")
        ids += [one.job_id for one in page.jobs]
        after = page.next_after
        if after is None:
            return ids


def _agrees(ids: list[str], names: list[str]) -> bool:
    what = [plural(len(found), noun) for found, noun in ((ids, "job"), (names, "deployment")) if found]
    return typer.confirm(f"End {' and '.join(what)} ({', '.join([*ids, *names])})?", err=True)


def _tell(statuses: list[JobStatus], *, as_json: bool) -> None:
    if as_json:
        emit({"jobs": [status.model_dump() for status in statuses]})
    elif statuses:
        say(f"{status.job_id} {status.state}, {done_of(status.requests)} done" for status in statuses)
    else:
        say("nothing runs")

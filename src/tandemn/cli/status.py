"""`tandemn status` and `tandemn list`: how one job or deployment stands, and which there are."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from tandemn.cli import deployment_report, options, report
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.text import table
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.protocol.deployments import DeploymentState, DeploymentSummary
from tandemn.protocol.jobs import JobList, JobState

app = typer.Typer(rich_markup_mode=None)

#: Beside the states themselves.
STATE_GROUPS = ("active", "ended", "all")
#: The control plane's greatest page.
PAGE = 100


@app.command("status")
def status(
    *,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one.")
    ] = None,
    service_name: options.ServiceName = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show how one job stands (requests, chunks, pace, replicas, cost), or one deployment (backends, router).

    Examples:
        tandemn status job-4f2a --json
        tandemn status --service-name chat
    """
    options.one_of(job, service_name)
    asyncio.run(_status(job, service_name, as_json=as_json))


@app.command("list")
def list_(
    *,
    state: Annotated[
        str | None,
        typer.Option("--state", help="Only those in this state; also `active`, `ended` and `all`."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many jobs at most.")] = 50,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """List deployments, but for deleted ones, and jobs, newest first.

    Examples:
        tandemn list
        tandemn list --state active --json
        tandemn list --state degraded
    """
    known = list(dict.fromkeys([*STATE_GROUPS, *map(str, JobState), *map(str, DeploymentState)]))
    if state is not None and state not in known:
        raise InvalidInput(
            f"--state: {state!r} is no state of a job or deployment",
            code="wrong_usage",
            next_step=f"one of {', '.join(known)}",
            param="state",
        )
    asyncio.run(_list(state, limit, as_json=as_json))


async def _status(job: str | None, service_name: str | None, *, as_json: bool) -> None:
    async with connect() as client:
        if service_name is not None:
            deployment = await client.deployment(service_name)
            if as_json:
                emit(deployment)
            else:
                say(deployment_report.status_lines(deployment, time.time()))
            return
        assert job is not None, "one of the two was given"
        current = await client.job(job)
    if as_json:
        emit(current)
    else:
        say(report.status_lines(current, time.time()))


async def _list(state: str | None, limit: int, *, as_json: bool) -> None:
    async with connect() as client:
        deployments = await _deployments(client, state)
        jobs = await _jobs(client, state, limit)
    if as_json:
        emit({**jobs.model_dump(), "deployments": [each.model_dump() for each in deployments]})
        return
    now = time.time()
    if deployments:
        say(table(deployment_report.SUMMARY_HEADS, deployment_report.summary_rows(deployments, now)))
    if deployments and jobs.jobs:
        say("")
    if jobs.jobs:
        say(table(report.SUMMARY_HEADS, report.summary_rows(jobs.jobs, now)))
    if not deployments and not jobs.jobs:
        say("no jobs and no deployments" if state is None else f"none that are {state}")


async def _deployments(client: UserClient, state: str | None) -> list[DeploymentSummary]:
    if state is not None and state not in {*STATE_GROUPS, *map(str, DeploymentState)}:
        return []  # a state of jobs only
    return (await client.list_deployments(state=state)).deployments


async def _jobs(client: UserClient, state: str | None, limit: int) -> JobList:
    found = JobList(jobs=[])
    if state is not None and state not in {*STATE_GROUPS, *map(str, JobState)}:
        return found  # a state of deployments only
    while len(found.jobs) < limit:
        page = await client.list_jobs(
            limit=min(limit - len(found.jobs), PAGE),
            after=found.next_after,
            state=None if state == "all" else state,
        )
        found = JobList(jobs=[*found.jobs, *page.jobs], next_after=page.next_after)
        if page.next_after is None:
            break
    return found

"""`tandemn cost`: what was spent, by job and deployment, or by part for one."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tandemn.cli import cost_report, options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, note, say
from tandemn.cli.text import printable, table
from tandemn.client import UserClient
from tandemn.errors import Broken, InvalidInput, Retryable
from tandemn.protocol.cost import DeploymentCostView
from tandemn.protocol.jobs import CostReport

app = typer.Typer(rich_markup_mode=None)

#: Between two looks of the dashboard; the control plane reads meters about as often.
REFRESH_S = 2.0


@app.command("cost")
def cost(
    *,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one; everything where not given."),
    ] = None,
    service_name: Annotated[
        str | None,
        typer.Option("--service-name", metavar="S", help="A deployment: on a terminal, live until Ctrl-C."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Show a deployment's costs once, on a terminal too.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Rows shown at most; the total is of all.")
    ] = 50,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show what was spent: everything and the total, or one job or deployment by part.

    Each figure says how it was made: billed by the provider, metered (observed time at the price of the
    launch) or estimated. What has no known price is unknown, not free.

    Examples:
        tandemn cost
        tandemn cost job-4f2a --json
        tandemn cost --service-name qwen3-0-6b
    """
    if job is not None and service_name is not None:
        raise InvalidInput("a job or --service-name, not both", code="wrong_usage", param="service_name")
    asyncio.run(_cost(job, service_name, limit, as_json=as_json, once=once))


async def _cost(job: str | None, service_name: str | None, limit: int, *, as_json: bool, once: bool) -> None:
    async with connect() as client:
        if service_name is not None:
            await _deployment(client, service_name, as_json=as_json, once=once)
        elif job is not None:
            await _job(client, job, as_json=as_json)
        elif as_json:
            emit(await client.cost(limit=limit))
        else:
            say(_everything(await client.cost(limit=limit)))


async def _job(client: UserClient, job: str, *, as_json: bool) -> None:
    status = await client.job(job)
    if status.cost is None:
        raise Broken(
            f"the control plane does not say what {status.job_id} costs",
            code="cost_unavailable",
            next_step="it is of an older version: `tandemn server stop`, then any command",
        )
    if as_json:
        emit({"job_id": status.job_id, **status.cost.model_dump()})
    else:
        say(cost_report.cost_lines(status.job_id, status.cost))


async def _deployment(client: UserClient, service_name: str, *, as_json: bool, once: bool) -> None:
    found = await client.deployment_cost(service_name)
    if as_json:
        emit(found)
    elif once or not sys.stdout.isatty():
        say(cost_report.deployment_lines(found))
    else:
        await _dashboard(client, found)


async def _dashboard(client: UserClient, found: DeploymentCostView) -> None:
    """Show the costs until interrupted, or until the deployment is gone."""
    console = Console(markup=False, highlight=False, emoji=False)
    with Live(_screen(found), console=console, auto_refresh=False) as live:
        while found.ended_at is None:
            await asyncio.sleep(REFRESH_S)
            try:
                found = await client.deployment_cost(found.service_name)
            except Retryable as error:
                # What was shown stays on the screen; the control plane may be starting again.
                note(f"waiting: {error.message}")
                continue
            live.update(_screen(found), refresh=True)


def _screen(found: DeploymentCostView) -> Text:
    return Text("\n".join(printable(line) for line in cost_report.deployment_lines(found)), no_wrap=True)


def _everything(report: CostReport) -> list[str]:
    lines = []
    if report.jobs or not report.deployments:
        lines += table(cost_report.COST_HEADS, cost_report.cost_rows(report.jobs))
    if report.deployments:
        lines += [""] if lines else []
        lines += table(cost_report.DEPLOYMENT_HEADS, cost_report.deployment_rows(report.deployments))
    return [*lines, *cost_report.cost_total(report)]

"""`tandemn cost`: what was spent, by job, or by part for one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tandemn.cli import options, report
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.text import table
from tandemn.errors import Broken

app = typer.Typer(rich_markup_mode=None)


@app.command("cost")
def cost(
    *,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Job id, or the beginning of one; all where not given."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Jobs shown at most; the total is of all.")
    ] = 50,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show what was spent: every job and the total, or one job by part.

    Each figure says how it was made: billed by the provider, metered (observed time at the price of the
    launch) or estimated. What has no known price is unknown, not free.

    Examples:
        tandemn cost
        tandemn cost job-4f2a --json
    """
    asyncio.run(_cost(job, limit, as_json=as_json))


async def _cost(job: str | None, limit: int, *, as_json: bool) -> None:
    async with connect() as client:
        if job is None:
            everything = await client.cost(limit=limit)
            if as_json:
                emit(everything)
            else:
                rows = report.cost_rows(everything.jobs)
                say([*table(report.COST_HEADS, rows), *report.cost_total(everything)])
            return
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
        say(report.cost_lines(status.job_id, status.cost))

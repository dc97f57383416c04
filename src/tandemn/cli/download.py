"""`tandemn download`: fetch a job's answers, to a file or to stdout."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from tandemn.cli import answers, options
from tandemn.cli.connection import connect
from tandemn.cli.output import note
from tandemn.cli.text import plural

app = typer.Typer(rich_markup_mode=None)


@app.command("download")
def download(
    *,
    job: options.JobId,
    output: options.Output = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The answers of finished chunks, while the job still runs.")
    ] = False,
    _verbose: options.Verbose = False,
) -> None:
    """Fetch the answers of a job, one JSON line a request, in input order.

    With -o, OUT is replaced once all of it is here, and error lines, if any, go to OUT.errors.jsonl. Without
    it the answers go to stdout.

    Examples:
        tandemn download job-4f2a -o answers.jsonl
        tandemn download job-4f2a --partial | head -1
    """
    if output is not None:
        answers.check_output(output)
    asyncio.run(_download(job, output, is_partial=partial))


async def _download(job: str, output: Path | None, *, is_partial: bool) -> None:
    async with connect() as client:
        status = await client.job(job)
        if output is None:
            async for block in client.output(status.job_id, partial=is_partial):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            errors = None
        else:
            errors = await answers.fetch(client, status, output, partial=is_partial)
    failed = plural(status.requests.failed, "request")
    if errors is not None:
        note(f"{failed} failed: their error lines are in {errors}")
    elif status.error_file_id is not None:
        note(f"{failed} failed: -o OUT fetches their error lines too")

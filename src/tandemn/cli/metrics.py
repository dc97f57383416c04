"""`tandemn metrics`: what a job's engines and machines do, or did."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from tandemn.cli import metrics_report, options
from tandemn.cli.connection import connect
from tandemn.cli.follow import patiently
from tandemn.cli.output import emit, say
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.protocol.metrics import JobMetrics

app = typer.Typer(rich_markup_mode=None)

#: Between two looks: replicas report no oftener.
LOOK_S = 5.0
#: Clears a terminal before the next table.
_CLEAR = "\x1b[H\x1b[2J"


@app.command("metrics")
def metrics(
    *,
    job: options.JobId,
    replica: Annotated[
        str | None, typer.Option("--replica", metavar="R", help="Only this replica, also where it has ended.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Also over the job's life so far; an ended job always.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the job ends.")] = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show what a job's replicas do: requests running and waiting in the engine, KV cache, tokens/s, TTFT, TPOT, and
    what their machines do: CPU, memory, GPUs.

    Of a job that has ended, what was kept of that: means and peaks over each replica's life; with --json every point.
    With --watch --json one object a look.

    Examples:
        tandemn metrics job-4f2a --watch
        tandemn metrics job-4f2a --replica r0 --history --json
    """
    if watch and history:
        raise InvalidInput("--watch shows the present, --history the past", code="wrong_usage", param="watch")
    asyncio.run(_metrics(job, replica, history=history, is_watching=watch, as_json=as_json))


async def _metrics(job: str, replica: str | None, *, history: bool, is_watching: bool, as_json: bool) -> None:
    async with connect() as client:
        if is_watching:
            await _watch(client, job, replica, as_json=as_json)
        else:
            _show(await _final(client, job, replica, history=history), as_json=as_json)


async def _final(client: UserClient, job: str, replica: str | None, *, history: bool) -> JobMetrics:
    found = await client.metrics(job, replica=replica, series=history)
    if found.state.has_ended and not history:
        found = await client.metrics(job, replica=replica, series=True)
    return found


async def _watch(client: UserClient, job: str, replica: str | None, *, as_json: bool) -> None:
    next_step = f"`tandemn metrics {job} --watch` goes on watching"
    while True:
        found = await patiently(client, lambda: client.metrics(job, replica=replica), next_step)
        if found.state.has_ended:
            whole = await patiently(client, lambda: _final(client, job, replica, history=True), next_step)
            _show(whole, as_json=as_json)
            return
        if not as_json and sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        _show(found, as_json=as_json)
        await asyncio.sleep(LOOK_S)


def _show(found: JobMetrics, *, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    say(metrics_report.present(found))
    if found.series is not None:
        say(["", *metrics_report.past(found)])

"""`tandemn add`, `kill` and `swap`: change the replicas of a running job; nothing is lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, say
from tandemn.cli.report import swap_line
from tandemn.cli.text import plural, printable
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.protocol.jobs import (
    AddAnswer,
    AddRequest,
    JobStatus,
    KillAnswer,
    KillRequest,
    ReplicaConfig,
    SwapAnswer,
    SwapRequest,
)

app = typer.Typer(rich_markup_mode=None)

Gpu = Annotated[str | None, typer.Option("--gpu", help="GPU type; the job's present one where not given.")]
Tp = Annotated[int | None, typer.Option("--tp", help="GPUs a replica splits each layer over.")]
Pp = Annotated[int | None, typer.Option("--pp", help="Stages a replica splits the layers into.")]
OnDemand = Annotated[bool, typer.Option("--on-demand", help="No spot instances.")]


@app.command("add")
def add(
    *,
    job: options.JobId,
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="How many replicas to add.")],
    gpu: Gpu = None,
    tp: Tp = None,
    pp: Pp = None,
    on_demand: OnDemand = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Add replicas to a running job: spot, and of its present configuration where no flag says otherwise.

    Examples:
        tandemn add job-4f2a 2
        tandemn add job-4f2a 1 --gpu L40S --tp 2 --on-demand
    """
    request = options.checked(
        AddRequest, {"replicas": "N"}, replicas=count, gpu=gpu, tp=tp, pp=pp, on_demand=on_demand
    )

    async def ask(client: UserClient) -> AddAnswer:
        return await client.add(job, request)

    answer = asyncio.run(_ask(ask))
    _tell(answer, [f"new: {_names(answer.new)}", f"each {_config(answer.config)}"], as_json=as_json)


@app.command("kill")
def kill(
    *,
    job: options.JobId,
    replicas: Annotated[
        list[str] | None, typer.Option("--replica", metavar="R", help="Replica; may be given several times.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Kill replicas of a running job: their chunks go to the others, and none is started in their place.

    Examples:
        tandemn kill job-4f2a --replica r0
        tandemn kill job-4f2a --replica r0 --replica r3 --json
    """
    if not replicas:
        raise InvalidInput(
            "--replica is missing",
            code="wrong_usage",
            next_step=f"`tandemn status {printable(job)}` names them",
            param="replica",
        )
    request = options.checked(KillRequest, {"replicas": "--replica"}, replicas=replicas)

    async def ask(client: UserClient) -> KillAnswer:
        return await client.kill(job, request)

    answer = asyncio.run(_ask(ask))
    _tell(
        answer,
        [
            f"killed: {_names(answer.killed)}",
            *(f"skipped: {name}, {why}" for name, why in answer.skipped.items()),
            f"{plural(answer.chunks_reclaimed, 'chunk')} reclaimed",
            f"the job wants {plural(answer.replicas_wanted, 'replica')} from now on",
        ],
        as_json=as_json,
    )


@app.command("swap")
def swap(
    *,
    job: options.JobId,
    gpu: Gpu = None,
    tp: Tp = None,
    pp: Pp = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", help="How many new ones; as many as live now.")
    ] = None,
    ready_threshold: Annotated[
        int | None,
        typer.Option("--ready-threshold", help="New ones at work before the old drain; all of them."),
    ] = None,
    on_demand: OnDemand = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the swap under way; the old stay.")] = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Replace all replicas of a running job by others: the old drain once enough new ones are at work.

    Where the new ones fail, the old stay and the job's status says so.

    Examples:
        tandemn swap job-4f2a --gpu H100 --tp 2
        tandemn swap job-4f2a --gpu L40S --replicas 4 --ready-threshold 2
        tandemn swap job-4f2a --cancel
    """
    fields = {
        "gpu": gpu,
        "tp": tp,
        "pp": pp,
        "replicas": replicas,
        "ready_threshold": ready_threshold,
        "on_demand": on_demand,
    }
    if cancel:
        _cancel_swap(job, fields, as_json=as_json)
        return
    request = options.checked(SwapRequest, {}, **fields)

    async def ask(client: UserClient) -> SwapAnswer:
        return await client.swap(job, request)

    answer = asyncio.run(_ask(ask))
    _tell(
        answer,
        [
            f"new: {_names(answer.new)}",
            f"each {_config(answer.config)}",
            f"old: {_names(answer.old)}, until {plural(answer.threshold, 'new replica')} have begun to process",
        ],
        as_json=as_json,
    )


def _cancel_swap(job: str, fields: dict[str, Any], *, as_json: bool) -> None:
    given = [name for name, value in fields.items() if value]
    if given:
        raise InvalidInput(
            f"--cancel stands alone, without --{given[0].replace('_', '-')}",
            code="wrong_usage",
            param=given[0],
        )

    async def ask(client: UserClient) -> JobStatus:
        return await client.cancel_swap(job)

    status = asyncio.run(_ask(ask))
    _tell(status, [swap_line(status.swap) if status.swap else "no swap is under way"], as_json=as_json)


async def _ask(ask: Callable[[UserClient], Any]) -> Any:
    async with connect() as client:
        return await ask(client)


def _tell(answer: BaseModel, lines: list[str], *, as_json: bool) -> None:
    if as_json:
        emit(answer)
    else:
        say(printable(line) for line in lines)


def _names(replicas: list[str]) -> str:
    return ", ".join(replicas) or "none"


def _config(config: ReplicaConfig) -> str:
    where = f" in {config.region}" if config.region else ""
    return f"{config.gpu}, tp {config.tp}, pp {config.pp}, {config.market}{where}"

"""`tandemn server`: start, stop or look at the control plane of this machine."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from tandemn.cli import embedded, options
from tandemn.cli.connection import connect, named_url
from tandemn.cli.output import emit, note, say
from tandemn.errors import Conflict
from tandemn.protocol.jobs import ServerStatus
from tandemn.settings import Settings, child_environment, load

app = typer.Typer(
    name="server", rich_markup_mode=None, help="Start, stop or look at the control plane of this machine."
)


@app.command("start")
def start(
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0: 26336 if it is free, else another.")
    ] = 0,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in this terminal, log to stderr, end on Ctrl-C.")
    ] = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Start the control plane of this state folder; say so where it runs already.

    Every other command starts it too, where none runs and TANDEMN_SERVER_URL names none.

    Examples:
        tandemn server start
        tandemn server start --port 26336 --foreground
    """
    settings = load()
    if foreground:
        asyncio.run(_refuse_second(settings))
        arguments = [*embedded.COMMAND, "--host", host, "--port", str(port)]
        # The same process, so that signals reach it as they reach this command.
        os.execve(arguments[0], arguments, child_environment(settings))  # noqa: S606 - our own interpreter
    record = asyncio.run(embedded.ensure(settings, host=host, port=port))
    if as_json:
        emit(ServerStatus(url=record.url, pid=record.pid, version=record.version))
    else:
        say(
            f"the control plane serves at {record.url} (pid {record.pid}); its log is {embedded.log_path(settings.home_path)}"
        )


@app.command("stop")
def stop(
    *,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Stop the control plane of this state folder, its Redis and its replicas; jobs go on at the next start.

    Examples:
        tandemn server stop
    """
    home = load().home_path
    record = asyncio.run(embedded.stop(home))
    if as_json:
        emit({"stopped": record is not None, "pid": record.pid if record else None})
    elif record:
        say(f"stopped the control plane of {home} (pid {record.pid})")
    else:
        say(f"no control plane runs in {home}")


@app.command("status")
def status(
    *,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Say where the control plane is; exit code 1 where none runs.

    Examples:
        tandemn server status
        tandemn server status --json
    """
    found = asyncio.run(_status(load()))
    if found is None:
        note("no control plane runs; the next command starts one")
        if as_json:
            emit({"url": None, "pid": None, "version": None})
        return 1
    if as_json:
        emit(found)
    else:
        say(f"the control plane serves at {found.url} (pid {found.pid}, version {found.version})")
    return 0


async def _status(settings: Settings) -> ServerStatus | None:
    if named_url(settings) is None and await embedded.find(settings.home_path) is None:
        return None
    async with connect() as client:
        return await client.server()


async def _refuse_second(settings: Settings) -> None:
    record = await embedded.find(settings.home_path)
    if record:
        raise Conflict(
            f"a control plane of {settings.home_path} runs already at {record.url} (pid {record.pid})",
            code="server_running",
            next_step="`tandemn server stop` ends it",
        )

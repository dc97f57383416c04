"""`tandemn server`: start, stop or look at the control plane of this machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from tandemn.cli import embedded, options
from tandemn.cli.connection import connect, is_elsewhere
from tandemn.cli.output import emit, note, say
from tandemn.errors import Conflict, InvalidInput
from tandemn.protocol.jobs import ServerStatus
from tandemn.server_records import ServerRecord
from tandemn.settings import LogFormat, Settings, child_environment, load

app = typer.Typer(
    name="server", rich_markup_mode=None, help="Start, stop or look at the control plane of this machine."
)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@app.command("start")
def start(
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0: 26336 if it is free, else another.")
    ] = 0,
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", help="PEM certificate with its chain: serve HTTPS."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", help="PEM key, where the certificate's file lacks it."),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log-format", help="Of its log; default: TANDEMN_LOG_FORMAT, else logfmt."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in this terminal, log to stderr, end on Ctrl-C.")
    ] = False,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="Start another one beside it: both serve, and one takes over when the other dies.",
        ),
    ] = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Start the control plane of this state folder; say so where it runs already.

    Every other command starts it too, where none runs and no other is named. On another address than loopback it
    asks everyone for a key: `tandemn keys create NAME --role admin` makes the first one.

    Examples:
        tandemn server start
        tandemn server start --host 0.0.0.0 --port 443 --tls-cert chain.pem --tls-key key.pem --foreground
        tandemn server start --standby
    """
    settings = load()
    arguments = _arguments(host, port, tls_cert, tls_key)
    arguments += ["--log-format", log_format.value] if log_format is not None else []
    if foreground:
        if not standby:
            asyncio.run(_refuse_second(settings))
        command = [*embedded.COMMAND, *arguments]
        command += ["--standby"] if standby else []
        # The same process, so that signals reach it as they reach this command.
        os.execve(command[0], command, child_environment(settings))  # noqa: S606 - our own interpreter
    if standby:
        record = asyncio.run(embedded.add_standby(settings, arguments=arguments))
    else:
        is_shared = host not in _LOOPBACK or tls_cert is not None
        record = asyncio.run(_start(settings, arguments, is_shared=is_shared))
    if as_json:
        emit(record.model_dump(include={"url", "pid", "version"}))
        return
    where = f"{record.shared_url}, and on this machine at {record.url}" if record.shared_url else record.url
    log = embedded.log_path(settings.home_path)
    say(f"the control plane serves at {where} (pid {record.pid}); its log is {log}")


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
        for other in found.control_planes:
            if other.pid != found.pid or other.url != found.url:
                role = "it leads" if other.is_leading else "it stands by"
                say(f"beside it: {other.url} (pid {other.pid}, version {other.version}); {role}")
    return 0


def _arguments(host: str, port: int, tls_cert: Path | None, tls_key: Path | None) -> list[str]:
    if tls_key is not None and tls_cert is None:
        raise InvalidInput("--tls-key is of no use without --tls-cert", code="wrong_usage", param="tls_key")
    if host not in _LOOPBACK and tls_cert is None:
        note(
            f"warning: {host} is served without encryption: give --tls-cert, or let only a proxy with TLS reach it"
        )
    arguments = ["--host", host, "--port", str(port)]
    for flag, file in (("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        if file is not None:
            # The server works in another folder.
            arguments += [flag, str(file.absolute())]
    return arguments


async def _start(settings: Settings, arguments: list[str], *, is_shared: bool) -> ServerRecord:
    record = await embedded.ensure(settings, arguments=arguments)
    if is_shared and record.shared_url is None:
        raise _running(settings, record)
    return record


async def _status(settings: Settings) -> ServerStatus | None:
    if not is_elsewhere(settings) and await embedded.find(settings.home_path) is None:
        return None
    async with connect() as client:
        return await client.server()


async def _refuse_second(settings: Settings) -> None:
    record = await embedded.find(settings.home_path)
    if record:
        raise _running(settings, record)


def _running(settings: Settings, record: ServerRecord) -> Conflict:
    return Conflict(
        f"a control plane of {settings.home_path} runs already at {record.url} (pid {record.pid})",
        code="server_running",
        next_step="`tandemn server stop` ends it",
    )

"""`tandemn router`: the data plane alone, in front of any backends. Becomes the router's process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tandemn.cli import options

app = typer.Typer(rich_markup_mode=None)


@app.command("router")
def router(
    *,
    table: Annotated[Path, typer.Option("--table", metavar="FILE", help="JSON routing table.")],
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")] = 8080,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Where counters survive; beside the table.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="PEM certificate: serve HTTPS.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="PEM key, where --cert does not have it.")
    ] = None,
    grace_s: Annotated[
        float, typer.Option("--grace-s", min=0, help="For streams under way after SIGTERM.")
    ] = 600.0,
    public: Annotated[bool, typer.Option("--public", help="Serve without a key.")] = False,
    _verbose: options.Verbose = False,
) -> None:
    """Route OpenAI-style traffic over spot and serverless backends; a broken stream is resumed elsewhere.

    Clients' key: TANDEMN_ROUTER_KEY; of /router/config: TANDEMN_ROUTER_ADMIN_KEY. Ends on SIGTERM, when the
    streams under way have finished.

    Examples:
        tandemn router --table table.json --port 8080
        TANDEMN_ROUTER_KEY=… tandemn router --table table.json --host 0.0.0.0 --cert site.pem
    """
    command = [sys.executable, "-m", "tandemn.router", "--table", str(table), "--host", host]
    command += ["--port", str(port), "--grace-s", str(grace_s)]
    for flag, path in (("--state", state), ("--cert", cert), ("--key", key)):
        command += [flag, str(path)] if path is not None else []
    command += ["--public"] if public else []
    sys.stdout.flush()
    # The same process from here on: signals reach the router itself, and the command line's memory is freed.
    os.execv(sys.executable, command)  # noqa: S606 - our own module, no shell

"""`tandemn login` and `tandemn logout`: which control plane this machine's commands talk to, and as whom."""

from __future__ import annotations

import asyncio
import getpass
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel

from tandemn.cli import options, saved_login
from tandemn.cli.connection import client_of
from tandemn.cli.output import emit, note, say
from tandemn.cli.saved_login import SavedLogin
from tandemn.errors import InvalidInput, NotAllowed
from tandemn.protocol.keys import Me, Role
from tandemn.settings import load

app = typer.Typer(rich_markup_mode=None)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class _LoggedIn(BaseModel):
    """`tandemn login --json`."""

    url: str
    name: str
    role: Role


@app.command("login")
def login(
    *,
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the control plane: https://HOST[:PORT].")],
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Keep the URL of a control plane and your key, for every command from here on.

    The key is taken from TANDEMN_API_KEY, else asked for, else read from stdin: never from the command line, which
    everyone on this machine may read. It is kept in TANDEMN_HOME/login.json, mode 600.

    Examples:
        tandemn login https://tandemn.example.com
        tandemn login https://tandemn.example.com < key.txt
    """
    settings = load()
    place = _checked(url)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    me, key = asyncio.run(_introduce(place, key))
    saved_login.write(settings.home_path, SavedLogin(url=place, key=key))
    if as_json:
        emit(_LoggedIn(url=place, name=me.name, role=me.role))
    else:
        say(f"logged in to {place} as {me.name} ({me.role})")


@app.command("logout")
def logout(
    *,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Forget the control plane and the key; commands talk to this machine's own again. The key stays in force.

    Examples:
        tandemn logout
    """
    home = load().home_path
    try:
        found = saved_login.read(home)
    except InvalidInput:
        found = None  # damaged: it goes, too
    saved_login.forget(home)
    if as_json:
        emit({"url": found.url if found else None})
    else:
        say(f"logged out of {found.url}" if found else "nobody was logged in")


def _checked(url: str) -> str:
    place = url.rstrip("/") if "://" in url else f"https://{url.rstrip('/')}"
    parts = urlsplit(place)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
        raise InvalidInput(
            f"{url!r} is no address of a control plane",
            code="invalid_server_url",
            next_step="write https://HOST or https://HOST:PORT",
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        note(f"warning: {place} is not encrypted: whoever is on the way can read your key and your requests")
    return place


async def _introduce(url: str, key: str | None) -> tuple[Me, str | None]:
    """Find out whom the key makes us; it is asked for only where the control plane wants one."""
    async with client_of(url, key) as client:
        try:
            return await client.me(), key
        except NotAllowed as refusal:
            if refusal.code != "missing_api_key":
                raise
        client.key = await asyncio.to_thread(_read_key, url)
        return await client.me(), client.key


def _read_key(url: str) -> str:
    key = getpass.getpass(f"key for {url}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not key.strip():
        raise InvalidInput(
            "no key was given",
            code="missing_api_key",
            next_step="type it, or pass it on stdin or in TANDEMN_API_KEY",
        )
    return key.strip()

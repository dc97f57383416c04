"""`tandemn keys`: who may use the control plane, and as what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Protocol, TypeVar

import typer

from tandemn.cli import embedded, options
from tandemn.cli.connection import connect, is_elsewhere
from tandemn.cli.offline_keys import OfflineKeys
from tandemn.cli.output import emit, note, say
from tandemn.cli.text import table
from tandemn.protocol.keys import CreateKey, KeyList, KeyMade, KeyView, Role
from tandemn.settings import load

app = typer.Typer(name="keys", rich_markup_mode=None, help="Who may use the control plane, and as what.")

_Answer = TypeVar("_Answer")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key: a person, or a program of theirs.")]


class _Keys(Protocol):
    """Where keys are kept: behind a control plane, or in a state that none serves now."""

    async def create_key(self, request: CreateKey) -> KeyMade: ...

    async def list_keys(self) -> KeyList: ...

    async def replace_key(self, name: str) -> KeyMade: ...

    async def revoke_key(self, name: str) -> KeyView: ...


@app.command("create")
def create(
    *,
    name: Name,
    role: Annotated[
        Role,
        typer.Option("--role", help="viewer: reads all; user: its own; admin: everything, and keys."),
    ] = Role.USER,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Give somebody a key; it is shown once. The first one must be an admin's.

    Examples:
        tandemn keys create ops --role admin
        tandemn keys create alice@example.com
    """
    request = options.checked(CreateKey, {"name": "NAME"}, name=name, role=role)
    _tell(_ask(lambda keys: keys.create_key(request)), as_json=as_json)


@app.command("list")
def list_(
    *,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """List the keys: whose, which role, when used last. A key itself is never shown again.

    Examples:
        tandemn keys list
    """
    found = _ask(lambda keys: keys.list_keys())
    if as_json:
        emit(found)
    elif found.keys:
        say(table(("NAME", "ROLE", "KEY", "CREATED", "LAST USED", "STATE"), map(_row, found.keys)))
    else:
        say("no keys: the control plane serves its own machine only")


@app.command("rotate")
def rotate(
    *,
    name: Name,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Replace somebody's key by another, shown once; the one before is void at once. Revives a revoked name.

    Examples:
        tandemn keys rotate alice
    """
    _tell(_ask(lambda keys: keys.replace_key(name)), as_json=as_json)


@app.command("revoke")
def revoke(
    *,
    name: Name,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Make somebody's key void at once; what was made with it stays, and its jobs go on.

    Examples:
        tandemn keys revoke alice
    """
    revoked = _ask(lambda keys: keys.revoke_key(name))
    if as_json:
        emit(revoked)
    else:
        say(f"revoked the key of {revoked.name}")


def _ask(question: Callable[[_Keys], Awaitable[_Answer]]) -> _Answer:
    async def ask() -> _Answer:
        async with _keys() as keys:
            return await question(keys)

    return asyncio.run(ask())


@asynccontextmanager
async def _keys() -> AsyncIterator[_Keys]:
    """Ask the control plane; where none runs on this machine, none is started for it."""
    settings = load()
    if is_elsewhere(settings) or await embedded.find(settings.home_path) is not None:
        async with connect() as client:
            yield client
    else:
        yield OfflineKeys(settings)


def _tell(made: KeyMade, *, as_json: bool) -> None:
    if as_json:
        emit(made)
        return
    note(f"the key of {made.name} ({made.role}), shown this once:")
    say(made.key)


def _row(key: KeyView) -> tuple[str, ...]:
    state = "revoked" if key.revoked_at is not None else "in force"
    return (key.name, key.role, key.key_id, _when(key.created_at), _when(key.last_used_at), state)


def _when(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")

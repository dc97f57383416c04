"""Which control plane a command talks to: the one that the settings name, else the login's, else this machine's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tandemn import __version__, server_records
from tandemn.cli import embedded, saved_login
from tandemn.cli.output import note
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.settings import Settings, load


@asynccontextmanager
async def connect() -> AsyncIterator[UserClient]:
    """Enter a client of the control plane; the embedded one is started where none is named and none lives."""
    settings = load()
    url, key = _elsewhere(settings)
    if url is None:
        record = await embedded.ensure(settings)
        url, key = record.url, key or record.key
    async with client_of(url, key) as client:
        yield client


@asynccontextmanager
async def client_of(url: str, key: str | None) -> AsyncIterator[UserClient]:
    """Enter a client that says so once where the control plane is of another version."""

    def tell(version: str) -> None:
        note(f"note: the control plane is version {version}, this is {__version__}")

    async with UserClient(url, key, on_other_version=tell) as client:
        yield client


def is_elsewhere(settings: Settings) -> bool:
    """Say whether commands go to a control plane that is not this state folder's own."""
    return _elsewhere(settings)[0] is not None


def _elsewhere(settings: Settings) -> tuple[str | None, str | None]:
    """Return the URL that is named, and the key for it.

    Raises:
        InvalidInput: the URL is no HTTP address.
    """
    given = settings.api_key.get_secret_value() if settings.api_key else None
    login = saved_login.read(settings.home_path)
    url = settings.server_url
    if not url:
        return (login.url, given or login.key) if login else (None, given)
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"TANDEMN_SERVER_URL is {url!r}, not an address that begins with http:// or https://",
            code="invalid_server_url",
        )
    # A key goes to the control plane that it was given for, and to no other.
    kept = login.key if login and login.url == url.rstrip("/") else None
    return url, given or kept


def is_own(client: UserClient) -> bool:
    """Say whether what answers the client is the control plane that it belongs to.

    The embedded one's port may be another state folder's once it has died: what that one says is no answer.
    """
    settings = load()
    if is_elsewhere(settings):
        return True
    return any(record.url == client.url for record in server_records.living(settings.home_path))


def follow_restart(client: UserClient) -> None:
    """Point the client at the embedded control plane's present address: a restart may have moved it."""
    settings = load()
    record = None if is_elsewhere(settings) else embedded.read(settings.home_path)
    if record:
        client.url = record.url
        if not settings.api_key:
            client.key = record.key

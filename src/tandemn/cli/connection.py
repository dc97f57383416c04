"""Which control plane a command talks to: the one that the settings name, else the one of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tandemn.cli import embedded
from tandemn.client import UserClient
from tandemn.errors import InvalidInput
from tandemn.settings import Settings, load


@asynccontextmanager
async def connect() -> AsyncIterator[UserClient]:
    """Enter a client of the control plane; the embedded one is started where none is named and none lives."""
    settings = load()
    url = named_url(settings)
    if url is None:
        record = await embedded.ensure(settings)
        url, key = record.url, record.key
    else:
        key = settings.api_key.get_secret_value() if settings.api_key else None
    async with UserClient(url, key) as client:
        yield client


def named_url(settings: Settings) -> str | None:
    """Return the control plane that the settings name, if they do.

    Raises:
        InvalidInput: it is no HTTP address.
    """
    url = settings.server_url
    if url and not url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"TANDEMN_SERVER_URL is {url!r}, not an address that begins with http:// or https://",
            code="invalid_server_url",
        )
    return url or None


def follow_restart(client: UserClient) -> None:
    """Point the client at the embedded control plane's present address: a restart may have moved it."""
    settings = load()
    record = None if settings.server_url else embedded.read(settings.home_path)
    if record:
        client.url, client.key = record.url, record.key

"""What `tandemn check` asks: does everything that this control plane needs answer, and who is signed in where."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from sqlalchemy import text

from tandemn.errors import MissingDependency, TandemnError
from tandemn.protocol.upkeep import CheckReport, CheckState, CheckView
from tandemn.serving.providers.adapters import hosts, providers
from tandemn.serving.router_host import LOCAL_HOST

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tandemn.control.services import Services

#: How long any one of them may take to answer, in seconds.
CHECK_S = 30.0


async def check(services: Services, provider: str | None = None) -> CheckReport:
    """Ask everything at a time; with `provider`, that provider only.

    Raises:
        InvalidInput: there is no such provider (`unknown_provider`).
    """
    if provider is not None:
        if provider not in providers():
            await services.providers.provider(provider)  # raises what says which there are
        return CheckReport(checks=[await _asked(provider, _provider(services, provider), is_wanted=True)])
    checks = [
        _asked("database", _database(services)),
        _asked("redis", _redis(services)),
        _asked("objects", _objects(services)),
        *(_asked(f"router:{name}", _host(services, name), is_wanted=name == LOCAL_HOST) for name in hosts()),
        *(_asked(name, _provider(services, name), is_wanted=False) for name in providers()),
    ]
    return CheckReport(checks=list(await asyncio.gather(*checks)))


def is_not_set_up(error: TandemnError) -> bool:
    """Say whether a provider refused because nobody has set it up here."""
    return isinstance(error, MissingDependency) or error.code == "provider_credentials"


async def _asked(name: str, question: Awaitable[str], *, is_wanted: bool = True) -> CheckView:
    try:
        async with asyncio.timeout(CHECK_S):
            return CheckView(name=name, state=CheckState.OK, detail=await question)
    except TimeoutError:
        return CheckView(
            name=name,
            state=CheckState.FAILED,
            detail=f"no answer within {CHECK_S:g} s",
            code="provider_unavailable",
        )
    except TandemnError as exc:
        state = CheckState.NOT_SET_UP if is_not_set_up(exc) and not is_wanted else CheckState.FAILED
        return CheckView(name=name, state=state, detail=exc.message, code=exc.code, next_step=exc.next_step)


async def _database(services: Services) -> str:
    await services.database.run(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
    return "SQLite in the state folder" if services.database.is_sqlite else "PostgreSQL"


async def _redis(services: Services) -> str:
    await services.queue.ping()
    return "embedded" if services.settings.redis_url is None else "TANDEMN_REDIS_URL"


async def _objects(services: Services) -> str:
    """Write, read and delete an object: a store that only lists is of no use."""
    name, content = f"checks/{secrets.token_hex(8)}", b"tandemn check"
    await services.objects.put(name, content)
    try:
        if await services.objects.get(name) != content:
            raise TandemnError("it gave back something else than was stored", code="store_unavailable")
    finally:
        await services.objects.delete(name)
    return services.objects.url


async def _provider(services: Services, name: str) -> str:
    return (await (await services.providers.provider(name)).check()).detail


async def _host(services: Services, name: str) -> str:
    return (await (await services.providers.host(name)).check()).detail

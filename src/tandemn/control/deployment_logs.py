"""The logs of a deployment's backends and router as one stream, each line led by the part's name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.control.log_stream import FOLLOW_LINES, FOLLOW_S, after
from tandemn.control.store import deployments
from tandemn.control.store.parts import ROUTER
from tandemn.errors import NotFound, TandemnError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.control.services import Services
    from tandemn.control.store.deployments import DeploymentRecord

#: What stands in place of a log that is not to be had.
_NO_LOG = "(nothing yet, or the provider has no API for its log: its console has it)"


async def stream_logs(
    services: Services, service_name: str, *, part: str | None, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """Return the end of each part's log, and with `follow` what comes after, until the deployment is gone.

    Raises:
        NotFound: the deployment has no such part (`backend_not_found`).
    """
    record = await services.database.run(deployments.get, service_name)
    names = [each.name for each in record.parts]
    if part is not None and part not in names:
        raise NotFound(
            f"deployment {service_name} has no {part}",
            code="backend_not_found",
            next_step=f"it has {', '.join(names)}",
            object_id=service_name,
        )
    return _stream(services, record, [part] if part is not None else names, tail, follow=follow)


async def _stream(
    services: Services, record: DeploymentRecord, names: list[str], tail: int, *, follow: bool
) -> AsyncIterator[bytes]:
    seen: dict[str, list[str]] = {}
    while True:
        for name in names:
            is_first = name not in seen
            try:
                lines = await _log(services, record, name, max(tail, 1) if is_first else FOLLOW_LINES)
            except TandemnError as exc:
                lines = [f"(its log cannot be read: {exc})"]
            for line in lines[-tail:] if is_first and tail else [] if is_first else after(seen[name], lines):
                yield f"{name} {line}\n".encode()
            seen[name] = lines
        if not follow or record.state.has_ended:
            return
        await asyncio.sleep(FOLLOW_S)
        record = await services.database.run(deployments.get, record.service_name)


async def _log(services: Services, record: DeploymentRecord, name: str, lines: int) -> list[str]:
    if name == ROUTER:
        assert record.router is not None, "its name was found"
        router = record.router.part
        if router.remote is None:
            return ["(it does not run)"]
        return list(await (await services.providers.host(router.plan.host)).logs(router.remote, lines))
    backend = next(each.part for each in record.backends if each.part.name == name)
    if backend.remote is None:
        return [f"(it does not exist: {backend.reason})" if backend.reason else "(it does not exist)"]
    provider = await services.providers.provider(backend.plan.provider, record.spec)
    return list(await provider.logs(backend.remote, lines)) or [_NO_LOG]

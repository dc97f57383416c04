"""What providers have under our names and no record knows: found by asking each, deleted by name."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.control.checks import is_not_set_up
from tandemn.control.store import deployments
from tandemn.control.stray_clusters import CLUSTER, SKYPILOT, Clusters, clusters, known
from tandemn.errors import MissingDependency, Retryable, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.upkeep import StrayReport, StrayView
from tandemn.serving.providers.adapters import hosts, providers
from tandemn.serving.providers.provider import BackendPlan

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.serving.providers.provider import Provider, Remote
    from tandemn.serving.router_host import RouterHost

BACKEND, ROUTER = "backend", "router"
#: How long a provider may take to list what it has, in seconds.
LIST_S = 60.0
#: Tries of a delete, and the wait between them, until the provider says that it is gone.
TRIES, TRY_S = 20, 3.0

#: Kind, provider, name and place: what tells one thing from all others.
Identity = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One provider or host, and what is asked of it; `opened` is None where it cannot be asked."""

    kind: str
    name: str
    opened: Provider | RouterHost | Clusters | None
    error: TandemnError | None = None


async def find(services: Services) -> StrayReport:
    """List what is there and has no record."""
    report, _ = await _found(services)
    return report


async def collect(services: Services, remote_names: Collection[str]) -> StrayReport:
    """Delete strays of these names, and say of each whether it is gone."""
    report, sources = await _found(services)
    chosen = [each for each in report.strays if each.remote_name in remote_names]
    # The same name is deleted once at each place, however many of it there are.
    first = {_identity(each): each for each in chosen}
    done = await asyncio.gather(
        *(_deleted(sources[each.kind, each.provider], each) for each in first.values())
    )
    outcome = dict(zip(first, done, strict=True))
    strays = [
        each.model_copy(update={"is_gone": reason is None, "reason": reason})
        for each in chosen
        for reason in (outcome[_identity(each)],)
    ]
    return report.model_copy(update={"strays": strays})


async def _found(
    services: Services,
) -> tuple[StrayReport, dict[tuple[str, str], Provider | RouterHost | Clusters]]:
    # First what is there, then what is known: whatever is made meanwhile has its record before it exists.
    sources = await _sources(services)
    listed = await asyncio.gather(*(_listed(each) for each in sources))
    known = await services.database.run(_known)
    strays: list[StrayView] = []
    unread: dict[str, str] = {}
    absent: list[str] = []
    for source, (remotes, error) in zip(sources, listed, strict=True):
        if error is not None and is_not_set_up(error):
            absent.append(source.name)
        elif error is not None:
            unread[f"{source.kind}s of {source.name}"] = error.message
        strays += [
            StrayView(
                kind=source.kind,
                provider=source.name,
                remote_name=each.remote_name,
                remote_id=each.remote_id,
                place=each.place or None,
            )
            for each in remotes
            if (source.kind, source.name, each.remote_name, each.place) not in known
        ]
    opened = {(each.kind, each.name): each.opened for each in sources if each.opened is not None}
    return StrayReport(strays=strays, unread=unread, not_set_up=absent), opened


async def _sources(services: Services) -> list[Source]:
    wanted = [(BACKEND, name) for name in providers()] + [(ROUTER, name) for name in hosts()]
    found = list(await asyncio.gather(*(_source(services, kind, name) for kind, name in wanted)))
    with suppress(MissingDependency):  # without SkyPilot there never was one
        found.append(Source(kind=CLUSTER, name=SKYPILOT, opened=clusters(services)))
    return found


async def _source(services: Services, kind: str, name: str) -> Source:
    try:
        if kind == BACKEND:
            return Source(kind=kind, name=name, opened=await services.providers.provider(name))
        return Source(kind=kind, name=name, opened=await services.providers.host(name))
    except TandemnError as exc:
        return Source(kind=kind, name=name, opened=None, error=exc)


async def _listed(source: Source) -> tuple[list[Remote], TandemnError | None]:
    if source.opened is None:
        return [], source.error
    try:
        async with asyncio.timeout(LIST_S):
            return list(await source.opened.find()), None
    except TimeoutError:
        return [], Retryable(f"no answer within {LIST_S:g} s", code="provider_unavailable")
    except TandemnError as exc:
        return [], exc


def _known(connection: Connection) -> set[Identity]:
    """Name everything that a record will delete some day."""
    found: set[Identity] = set()
    for record in deployments.all_of(connection):
        for part in record.parts:
            if part.state is BackendState.DELETED:
                continue
            plan = part.plan
            if isinstance(plan, BackendPlan):
                found.add((BACKEND, plan.provider, plan.remote_name, plan.place))
            else:
                found.add((ROUTER, plan.host, plan.remote_name, plan.place))
    return found | {(CLUSTER, SKYPILOT, name, "") for name in known(connection)}


async def _deleted(opened: Provider | RouterHost | Clusters, stray: StrayView) -> str | None:
    """Delete it until its provider says that it is gone; None: it is, else why not."""
    reason = "its provider has not said yet that it is gone"
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(TRY_S)
        try:
            if await opened.delete(stray.remote_name, stray.place or ""):
                return None
        except TandemnError as exc:
            reason = exc.message
            if attempt >= 2:
                return reason
    return reason


def _identity(stray: StrayView) -> Identity:
    return stray.kind, stray.provider, stray.remote_name, stray.place or ""

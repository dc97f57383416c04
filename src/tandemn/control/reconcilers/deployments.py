"""Moves a deployment's parts: the intent is written down, the provider is called, its answer is written down.

A process that dies between any two of these is followed by one that repeats the call. Each part moves by itself:
an image that takes minutes to build holds up no other. Whenever what the router should know has changed, it is
given another table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from tandemn import settings
from tandemn.control.store import deployments, parts
from tandemn.control.store.parts import ROUTER
from tandemn.errors import Superseded, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.serving import lifecycle
from tandemn.serving.keyring import KeyUse
from tandemn.serving.lifecycle import Action, Part
from tandemn.serving.providers.provider import BackendPlan, BackendStatus, Remote, ReplicaSeen, Secrets
from tandemn.serving.router_host import RouterPlan, RouterSetup
from tandemn.serving.routing_table import digest, is_routed, routing_table

if TYPE_CHECKING:
    from tandemn.clock import Clock
    from tandemn.control.store.database import Database
    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.control.store.parts import PartRecord
    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.keyring import Keyring
    from tandemn.serving.lifecycle import PlanT
    from tandemn.serving.providers.provider import Provider
    from tandemn.serving.router_host import RouterHost

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the reconciler works with. Whoever made it closes what it opens."""

    database: Database
    clock: Clock
    keyring: Keyring
    provider: Callable[[str, DeploymentSpec], Awaitable[Provider]]
    """Opens a provider by its name; raises what the seam says."""
    host: Callable[[str], Awaitable[RouterHost]]
    """Opens a host of routers by its name."""
    last_reading: Callable[[DeploymentRecord], Awaitable[None]]
    """Reads a router's meter before it is taken down."""


async def move(hands: Hands, service_name: str, part: str) -> float | None:
    """Move one part by one action.

    Returns:
        When to look at it again, where nothing else has changed, so that nothing was written; else None.
    """
    record = await hands.database.run(deployments.get, service_name)
    if part == ROUTER:
        return None if record.router is None else await _move(hands, record, record.router, _act_on_router)
    for known in record.backends:
        if known.part.name == part:
            return await _move(hands, record, known, _act_on_backend)
    return None


async def _move(
    hands: Hands,
    record: DeploymentRecord,
    known: PartRecord[PlanT],
    act: Callable[[Hands, DeploymentRecord, Part[PlanT], Action], Awaitable[Part[PlanT]]],
) -> float | None:
    name, now = record.service_name, hands.clock.now()
    is_deleting = record.is_deleting and (known.part.name == ROUTER or not record.is_draining(now))
    action = lifecycle.decide(known.part, is_deleting=is_deleting, now=now)
    if action is Action.NOTHING:
        return known.part.not_before
    try:
        intent = lifecycle.intended(known.part, action)
        if intent != known.part:
            known = await hands.database.run(deployments.write, name, known, intent, now=now)
        if intent.state is BackendState.DELETED:
            return None
        after = await _tried(hands, record, intent, action, act)
        if not lifecycle.is_news(known.part, after):
            return after.not_before
        await hands.database.run(deployments.write, name, known, after, now=hands.clock.now())
    except Superseded:
        # An update or a destroy came meanwhile. What was just made has a name by which the next step finds it.
        _log.info("a part's record moved on", service_name=name, part=known.part.name)
    return None


async def _tried(
    hands: Hands,
    record: DeploymentRecord,
    part: Part[PlanT],
    action: Action,
    act: Callable[[Hands, DeploymentRecord, Part[PlanT], Action], Awaitable[Part[PlanT]]],
) -> Part[PlanT]:
    """Call the provider; return what its answer, or its refusal, makes of the part."""
    try:
        return await act(hands, record, part, action)
    except TandemnError as exc:
        _log.warning(
            "a provider refused",
            service_name=record.service_name,
            part=part.name,
            action=action.value,
            code=exc.code,
            error=str(exc),
        )
        return lifecycle.failed(part, action, exc, hands.clock.now())


async def _act_on_backend(
    hands: Hands, record: DeploymentRecord, part: Part[BackendPlan], action: Action
) -> Part[BackendPlan]:
    provider = await hands.provider(part.plan.provider, record.spec)
    match action:
        case Action.ENSURE:
            remote = await provider.ensure(part.plan, secrets_of(hands.keyring, record.service_name))
            return lifecycle.ensured(part, remote, hands.clock.now())
        case Action.DELETE:
            is_gone = await provider.delete(part.plan.remote_name, part.plan.place)
            return lifecycle.deleted(part, hands.clock.now(), is_gone=is_gone)
        case _:
            assert part.remote is not None, "only what the provider took is looked at"
            after = lifecycle.looked(part, await provider.status(part.remote), hands.clock.now())
            if after.code == lifecycle.STARTUP_FAILED:
                return lifecycle.with_last_words(after, await _last_words(provider, part.remote))
            return after


async def _last_words(provider: Provider, remote: Remote) -> Sequence[str]:
    """Read the end of a backend's log before it is deleted: then nobody has it any more."""
    try:
        return await provider.logs(remote, lifecycle.LAST_WORDS)
    except TandemnError:
        return []  # what it failed of is known without it


async def _act_on_router(
    hands: Hands, record: DeploymentRecord, part: Part[RouterPlan], action: Action
) -> Part[RouterPlan]:
    host = await hands.host(part.plan.host)
    match action:
        case Action.ENSURE:
            remote = await host.ensure(part.plan, await setup_of(hands, record))
            return lifecycle.ensured(part, remote, hands.clock.now())
        case Action.DELETE:
            with suppress(TandemnError):
                await hands.last_reading(record)
            is_gone = await host.delete(part.plan.remote_name, part.plan.place)
            return lifecycle.deleted(part, hands.clock.now(), is_gone=is_gone)
        case _:
            assert part.remote is not None, "only what runs is looked at"
            seen = await host.status(part.remote)
            status = BackendStatus(
                state=seen.state,
                url=seen.url,
                seen=(ReplicaSeen(replica_id=ROUTER, state=seen.state.value, pid=seen.pid),),
                look_s=seen.look_s,
                reason=seen.reason,
            )
            return lifecycle.looked(part, status, hands.clock.now())


async def push(hands: Hands, service_name: str) -> None:
    """Give the router another table where what it should know has changed; one push at a time a deployment."""
    record = await hands.database.run(deployments.get, service_name)
    router = record.router
    if record.is_deleting or router is None or router.part.remote is None:
        return
    if not router.part.is_ensured or router.part.state not in lifecycle.SERVING:
        return  # it was given the table of then when it was started
    now = hands.clock.now()
    try:
        setup = await setup_of(hands, record)
        if (fresh := digest(setup.table)) != router.pushed:
            host = await hands.host(router.part.plan.host)
            await host.push(router.part.remote, setup)
            names = [each.part.name for each in record.backends if is_routed(each.part)]
            await hands.database.run(
                parts.write_pushed, service_name, router, fresh, names, now=hands.clock.now()
            )
        if record.old_key_until is not None and record.old_key_until <= now:
            await hands.database.run(deployments.keep_old_key, service_name, until=None, now=now)
            hands.keyring.drop_old(service_name)
    except Superseded:
        _log.info("a router's record moved on", service_name=service_name)
    except TandemnError as exc:
        _log.warning("the routing table was not pushed", service_name=service_name, error=str(exc))
        after = lifecycle.failed(router.part, Action.LOOK, exc, now)
        await hands.database.run(deployments.write, service_name, router, after, now=now)


async def setup_of(hands: Hands, record: DeploymentRecord) -> RouterSetup:
    """Make what the router is told: the table with all keys that clients and backends need."""
    name, keyring = record.service_name, hands.keyring
    secrets = secrets_of(keyring, name)
    routed = [each.part for each in record.backends if is_routed(each.part)]
    headers = {
        each.name: (await hands.provider(each.plan.provider, record.spec)).auth(secrets) for each in routed
    }
    table = routing_table(record.spec, routed, headers, _client_keys(hands, record))
    admin = keyring.key(name, KeyUse.ADMIN).get_secret_value()
    return RouterSetup(table=table, admin_key=admin, is_public=record.spec.public)


def _client_keys(hands: Hands, record: DeploymentRecord) -> list[str]:
    if record.spec.public:
        return []
    keys = [hands.keyring.key(record.service_name, KeyUse.ENDPOINT)]
    if record.old_key_until is not None and hands.clock.now() < record.old_key_until:
        old = hands.keyring.old_endpoint_key(record.service_name)
        keys += [old] if old is not None else []
    return [key.get_secret_value() for key in keys]


def secrets_of(keyring: Keyring, service_name: str) -> Secrets:
    """Read what a deployment's backends need."""
    token = settings.hf_token()
    return Secrets(
        engine_api_key=keyring.key(service_name, KeyUse.ENGINE).get_secret_value(),
        hf_token=None if token is None else token.get_secret_value(),
    )

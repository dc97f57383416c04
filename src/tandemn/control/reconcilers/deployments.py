"""Moves a deployment's backends: the intent is written down, the provider is called, its answer is written down.

A process that dies between any two of these is followed by one that repeats the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tandemn import settings
from tandemn.clock import Clock
from tandemn.control.store import deployments
from tandemn.control.store.database import Database
from tandemn.control.store.deployments import BackendRecord, DeploymentRecord
from tandemn.errors import Superseded, TandemnError
from tandemn.protocol.deployments import BackendState, DeploymentState
from tandemn.serving import lifecycle
from tandemn.serving.keyring import Keyring
from tandemn.serving.lifecycle import Action, Backend
from tandemn.serving.providers.provider import Provider, Secrets

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the reconciler works with."""

    database: Database
    clock: Clock
    keyring: Keyring
    provider: Callable[[deployments.DeploymentRecord, Backend], Provider]
    """Opens a backend's provider; raises what the seam says. Whoever made it closes it."""


async def step(hands: Hands, service_name: str) -> DeploymentRecord:
    """Move each backend by one action, all at a time; return the record as it is then."""
    record = await hands.database.run(deployments.get, service_name)
    moves = [_move(hands, record, known) for known in record.backends]
    # All of them end before this does: a step must never overlap with the next one.
    for outcome in await asyncio.gather(*moves, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
    record = await hands.database.run(deployments.get, service_name)
    if record.state is DeploymentState.DELETED:
        hands.keyring.forget(service_name)
    return record


async def _move(hands: Hands, record: DeploymentRecord, known: BackendRecord) -> None:
    name, now = record.service_name, hands.clock.now()
    action = lifecycle.decide(known.backend, is_deleting=record.is_deleting, now=now)
    if action is Action.NOTHING:
        return
    try:
        intent = lifecycle.intended(known.backend, action)
        if intent != known.backend:
            known = await hands.database.run(deployments.write, name, known, intent, now=now)
        if intent.state is BackendState.DELETED:
            return
        after = await _acted(hands, record, intent, action)
        await hands.database.run(deployments.write, name, known, after, now=hands.clock.now())
    except Superseded:
        # An update or a destroy came meanwhile. What was just made has a name by which the next step finds it.
        _log.info("a backend's record moved on", service_name=name, backend=known.backend.name)


async def _acted(hands: Hands, record: DeploymentRecord, backend: Backend, action: Action) -> Backend:
    """Call the provider; return what its answer makes of the backend."""
    try:
        provider = hands.provider(record, backend)
        match action:
            case Action.ENSURE:
                remote = await provider.ensure(backend.plan, _secrets(hands, record.service_name))
                return lifecycle.ensured(backend, remote, hands.clock.now())
            case Action.DELETE:
                is_gone = await provider.delete(backend.plan.remote_name, backend.plan.place)
                return lifecycle.deleted(backend, hands.clock.now(), is_gone=is_gone)
            case _:
                assert backend.remote is not None, "only what the provider took is looked at"
                return lifecycle.looked(backend, await provider.status(backend.remote), hands.clock.now())
    except TandemnError as exc:
        _log.warning(
            "a provider refused",
            service_name=record.service_name,
            backend=backend.name,
            action=action.value,
            code=exc.code,
            error=str(exc),
        )
        return lifecycle.failed(backend, action, exc, hands.clock.now())


def _secrets(hands: Hands, service_name: str) -> Secrets:
    token = settings.hf_token()
    return Secrets(
        engine_api_key=hands.keyring.key(service_name).get_secret_value(),
        hf_token=None if token is None else token.get_secret_value(),
    )

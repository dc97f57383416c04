"""What users do with deployments: deploy, update, destroy, rotate a key. Each records intent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.control import deployment_planning, deployment_views
from tandemn.control.store import deployments
from tandemn.errors import Conflict, InvalidInput
from tandemn.protocol.deployments import DeploymentState, EndpointKey
from tandemn.serving.keyring import KeyUse

if TYPE_CHECKING:
    from tandemn.control.access.rules import Caller
    from tandemn.control.services import Services
    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.protocol.deployments import DeploymentRequest


async def deploy(services: Services, request: DeploymentRequest, caller: Caller) -> DeploymentRecord:
    """Record a deployment of the caller's, or an update of one; the same again goes on with what is left half done.

    Raises:
        TandemnError: nothing was recorded; what `deployment_planning.plan` or `deployments.submit` says.
    """
    planned = await deployment_planning.plan(services, request, caller)
    record = await services.database.run(
        deployments.submit,
        planned.spec,
        planned.plans,
        now=services.clock.now(),
        is_update=request.is_update,
        caller=caller,
    )
    services.online.beat(record.service_name)
    return record


async def destroy(services: Services, service_name: str, *, actor: str) -> DeploymentRecord:
    """Record that a deployment is to go; it is gone when every provider says so."""
    record = await services.database.run(
        deployments.begin_deleting, service_name, now=services.clock.now(), actor=actor
    )
    services.online.beat(service_name)
    return record


async def endpoint_key(services: Services, service_name: str) -> EndpointKey:
    """Return where clients reach a deployment, and what they show."""
    record = await _living(services, service_name)
    key = None
    if not record.spec.public:
        found = await asyncio.to_thread(services.keyring.key, service_name, KeyUse.ENDPOINT)
        key = found.get_secret_value()
    return EndpointKey(
        service_name=service_name,
        endpoint=deployment_views.endpoint_of(record),
        api_key=key,
        old_key_until=record.old_key_until,
    )


async def rotate(services: Services, service_name: str, *, keep_old_s: float, actor: str) -> EndpointKey:
    """Give a deployment's endpoint another key; the old one is taken for a while.

    Raises:
        Conflict: the endpoint is public (`endpoint_public`).
    """
    record = await _living(services, service_name)
    if record.spec.public:
        raise Conflict(
            f"the endpoint of {service_name} is public: it asks for no key",
            code="endpoint_public",
            object_id=service_name,
        )
    await asyncio.to_thread(services.keyring.rotate, service_name)
    now = services.clock.now()
    await services.database.run(
        deployments.keep_old_key, service_name, until=now + keep_old_s, now=now, actor=actor
    )
    services.online.beat(service_name)
    return await endpoint_key(services, service_name)


async def _living(services: Services, service_name: str) -> DeploymentRecord:
    record = await services.database.run(deployments.get, service_name)
    if record.is_deleting:
        raise Conflict(
            f"the deployment {service_name} is {record.state}",
            code="deployment_deleting",
            object_id=service_name,
        )
    return record


def states_named(state: str | None) -> list[DeploymentState]:
    """Say which states a filter means; all of them where the list is empty.

    Raises:
        InvalidInput: no such state.
    """
    match state:
        case None | "active":
            return [each for each in DeploymentState if not each.has_ended]
        case "all":
            return []
        case "ended":
            return [each for each in DeploymentState if each.has_ended]
        case _ if state in set(DeploymentState):
            return [DeploymentState(state)]
    raise InvalidInput(
        f"no such state of deployments: {state}",
        code="invalid_state",
        param="state",
        next_step=f"states: active, ended, all, {', '.join(DeploymentState)}",
    )

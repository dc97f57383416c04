"""A deployment of `tandemn deploy`: show the plan, ask, record it, and follow it until one backend answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import typer

from tandemn.cli import deployment_report as report
from tandemn.cli.connection import connect
from tandemn.cli.deployment_steps import Steps, follow
from tandemn.cli.endpoint import first_answer
from tandemn.cli.job import forget_interrupt
from tandemn.cli.online_options import spec_of
from tandemn.cli.output import EXIT_INTERRUPTED, emit, note, say
from tandemn.client import UserClient
from tandemn.errors import Broken, Conflict, InvalidInput, TandemnError
from tandemn.protocol.deployments import (
    DeploymentPlan,
    DeploymentRequest,
    DeploymentState,
    DeploymentStatus,
    EndpointKey,
)
from tandemn.serving.spec import auto_name

_USABLE = frozenset({DeploymentState.READY, DeploymentState.DEGRADED})


async def deploy(
    flags: Mapping[str, Any],
    engine_args: list[str],
    *,
    is_update: bool,
    force: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Deploy, or update, and return the exit code."""
    # Wrong flags are refused before a control plane is started for them.
    name = _name(flags) if is_update else None
    spec = spec_of(flags, engine_args) if name is None else None
    async with connect() as client:
        if spec is None:
            assert name is not None, "an update has a name"
            spec = spec_of(flags, engine_args, current=(await client.deployment(name)).spec)
        request = DeploymentRequest(spec=spec, is_update=is_update, force=force)
        plan = await client.plan_deployment(request)
        if not as_json:
            say(report.plan_lines(plan))
        if not yes and not _agrees(plan):
            return 1
        return await _see_through(client, request.model_copy(update={"spec": plan.spec}), as_json=as_json)


def _name(flags: Mapping[str, Any]) -> str:
    """Name the deployment that `--update` means."""
    if flags.get("service_name"):
        return str(flags["service_name"])
    if not flags.get("model") or not flags.get("gpu"):
        raise InvalidInput(
            "--update needs the deployment's name",
            code="wrong_usage",
            next_step="add --service-name; or the --model and --gpu that it was named after",
            param="service_name",
        )
    return auto_name(flags["model"], flags["gpu"])


def _agrees(plan: DeploymentPlan) -> bool:
    """Ask before money is spent, where there is somebody to ask."""
    is_new = plan.state is None or bool(plan.changed)
    if plan.is_free or not is_new or not sys.stdin.isatty():
        return True
    return typer.confirm(report.question(plan), err=True)


async def _see_through(client: UserClient, request: DeploymentRequest, *, as_json: bool) -> int:
    spec = request.spec
    show = Steps(sys.stderr if as_json else sys.stdout)
    recording = asyncio.ensure_future(client.deploy(request))
    try:
        # Ctrl-C waits for the answer here: what was recorded must be known by its name.
        status = await asyncio.shield(recording)
        status = await follow(client, status, until=_is_done, show=show)
        _check_usable(status)
        key = await _answering(client, status, show)
    except asyncio.CancelledError:
        return await _detached(recording, spec.service_name)
    if as_json:
        emit({"service_name": key.service_name, "endpoint": key.endpoint, "api_key": key.api_key})
    else:
        say(report.endpoint_lines(key, spec.model))
        say(f"`tandemn destroy --service-name {spec.service_name}` ends it")
    return 0


async def _detached(recording: asyncio.Future[DeploymentStatus], service_name: str) -> int:
    """Answer Ctrl-C: only the watching ends."""
    forget_interrupt()
    try:
        await recording
    except TandemnError as error:
        note(f"interrupted; nothing was made: {error.message}")
        return EXIT_INTERRUPTED
    note(f"interrupted: the deployment {service_name} is being made without this command")
    note(f"`tandemn status --service-name {service_name}` shows it; the same deploy again waits for it")
    note(f"`tandemn destroy --service-name {service_name}` removes it")
    return EXIT_INTERRUPTED


def _is_done(status: DeploymentStatus) -> bool:
    """Whether there is nothing to wait for: it serves, with every update taken or refused, or it never will."""
    if status.state in _USABLE:
        serving = [each for each in status.backends if each.state in {"ready", "idle"}]
        return all(each.is_current or each.code is not None for each in serving)
    return status.state.has_ended or status.state in {DeploymentState.FAILED, DeploymentState.DELETING}


def _check_usable(status: DeploymentStatus) -> None:
    name = status.service_name
    if status.state is DeploymentState.FAILED:
        raise Broken(
            f"the deployment {name} has failed: {status.reason or 'no reason is known'}",
            code=status.code or "deployment_failed",
            next_step=f"`tandemn logs --service-name {name}` may tell more; the same deploy tries again, "
            f"`tandemn destroy --service-name {name}` removes it",
            object_id=name,
        )
    if status.state not in _USABLE:
        raise Conflict(
            f"the deployment {name} is {status.state}: somebody destroys it",
            code="deployment_deleting",
            object_id=name,
        )


async def _answering(client: UserClient, status: DeploymentStatus, show: Steps) -> EndpointKey:
    """Wait for the first answer through the router; a cold start may take minutes."""
    key = await client.endpoint_key(status.service_name)
    assert key.endpoint is not None, "a deployment that serves has a router"
    show.say("asking it a first time: a backend that sleeps takes its cold start")
    watching = asyncio.ensure_future(follow(client, status, until=_has_ended, show=show))
    asking = asyncio.ensure_future(first_answer(key.endpoint, key.api_key))
    try:
        await asyncio.wait([watching, asking], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            _check_usable(watching.result())
        await asking
    finally:
        for task in (watching, asking):
            task.cancel()
        await asyncio.gather(watching, asking, return_exceptions=True)
    return key


def _has_ended(status: DeploymentStatus) -> bool:
    return status.state.has_ended or status.state in {DeploymentState.FAILED, DeploymentState.DELETING}

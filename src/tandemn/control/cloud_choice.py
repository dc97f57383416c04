"""Where a job runs that names no cloud: what is set up decides, and the answer says why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.control.clouds import ANY
from tandemn.errors import InvalidInput, MissingDependency, TandemnError
from tandemn.fleet.engines.adapters import choose
from tandemn.fleet.engines.engine import EngineName
from tandemn.protocol.plans import CloudChoice

if TYPE_CHECKING:
    from tandemn.control.clouds import Clouds
    from tandemn.control.services import Services
    from tandemn.protocol.jobs import JobSpec

LOCAL = "local"


async def choose_cloud(services: Services, spec: JobSpec) -> CloudChoice:
    """Say where a job runs, and check that something can be launched there.

    Raises:
        InvalidInput: no such cloud, or nothing can be launched there.
    """
    choice = await _choice(services, spec)
    launcher = services.launchers.get(choice.cloud)
    if launcher is None:
        raise InvalidInput(
            f"no cloud is called {choice.cloud!r}",
            code="unknown_cloud",
            param="cloud",
            next_step=f"clouds: {', '.join(services.launchers)}",
        )
    await asyncio.to_thread(launcher.check)
    return choice


async def _choice(services: Services, spec: JobSpec) -> CloudChoice:
    if spec.cloud is not None:
        return CloudChoice(cloud=spec.cloud, reason="as asked for")
    if spec.gpu == "cpu":
        return CloudChoice(cloud=LOCAL, reason="the CPU that was asked for is this machine's")
    named = EngineName(spec.engine) if spec.engine in list(EngineName) else None
    engine = choose(spec.model, named)
    if engine is not EngineName.VLLM:
        return CloudChoice(cloud=LOCAL, reason=f"engine {engine} runs on this machine")
    if services.settings.cloud is not None:
        return CloudChoice(cloud=services.settings.cloud, reason="the default here (TANDEMN_CLOUD)")
    return await asyncio.to_thread(_set_up, services.clouds)


def _set_up(clouds: Clouds) -> CloudChoice:
    """Ask SkyPilot, where it is installed, which clouds let it in."""
    try:
        enabled = clouds.enabled()
    except MissingDependency:
        return CloudChoice(cloud=LOCAL, reason="no cloud is set up: SkyPilot is not installed")
    except TandemnError as exc:
        return CloudChoice(cloud=LOCAL, reason=f"no cloud can be asked: {exc.message}")
    match enabled:
        case []:
            return CloudChoice(cloud=LOCAL, reason="no cloud is set up: `sky check` finds none")
        case [cloud]:
            return CloudChoice(cloud=cloud, reason="the cloud that SkyPilot has access to")
        case _:
            return CloudChoice(cloud=ANY, reason=f"any that SkyPilot has access to: {', '.join(enabled)}")

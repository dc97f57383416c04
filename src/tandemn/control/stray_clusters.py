"""Clusters of jobs' replicas, as `gc` looks for them: found by SkyPilot's own list, ended until it says that they are gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.control.clouds import ANY
from tandemn.control.store import replicas
from tandemn.fleet.launchers.skypilot_task import cluster_name
from tandemn.fleet.reconcile import Presence
from tandemn.serving.providers.provider import Remote

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.fleet.launchers.launcher import Launcher

CLUSTER, SKYPILOT = "cluster", "skypilot"


class Clusters:
    """What SkyPilot has under the names of jobs' replicas."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def find(self) -> list[Remote]:
        """Raises TandemnError."""
        handles = await asyncio.to_thread(self._launcher.living)
        names = [str(handle["cluster"]) for handle in handles]
        return [Remote(provider=SKYPILOT, remote_name=name, remote_id=name) for name in names]

    async def delete(self, remote_name: str, place: str) -> bool:
        """See to it that it goes; True when SkyPilot says that it is gone."""
        del place
        handle = {"cluster": remote_name, "request": None}
        await asyncio.to_thread(self._launcher.terminate, handle)
        [seen] = await asyncio.to_thread(self._launcher.observe, [handle])
        return seen.presence is Presence.GONE


def clusters(services: Services) -> Clusters:
    """Raises MissingDependency where SkyPilot is not installed."""
    launcher = services.launchers[ANY]
    launcher.check()
    return Clusters(launcher)


def known(connection: Connection) -> set[str]:
    """Name the clusters of replicas that have not ended: those are for their jobs to end."""
    return {cluster_name(each.replica_id) for each in replicas.live(connection)}

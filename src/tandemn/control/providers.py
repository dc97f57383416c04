"""The providers and router hosts that this control plane has opened: each once, closed at the end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from tandemn.errors import TandemnError
from tandemn.serving.providers.adapters import open_host, open_provider

if TYPE_CHECKING:
    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.providers.provider import Provider
    from tandemn.serving.router_host import RouterHost
    from tandemn.skypilot.environment import SkyPilot

#: How long connections may take to close.
CLOSE_S = 5.0


class Providers:
    """Opens them when they are needed: an SDK takes a second to import, and most are never used.

    Args:
        sky: what those call that go through SkyPilot; None: each opens its own. It is closed by whoever opened it.
    """

    def __init__(self, sky: SkyPilot | None = None) -> None:
        self._sky = sky
        self._providers: dict[tuple[str, str | None, str | None], Provider] = {}
        self._hosts: dict[str, RouterHost] = {}
        self._opening: defaultdict[object, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def provider(self, name: str, spec: DeploymentSpec | None = None) -> Provider:
        """Return an opened provider, for the project and region that the spec names where it matters.

        Raises:
            InvalidInput: `unknown_provider`, or nobody is signed in (`provider_credentials`).
            MissingDependency: its SDK is not installed.
        """
        project, region = (spec.gcp_project, spec.gcp_region) if spec is not None else (None, None)
        key = (name, project, region)
        async with self._opening[key]:
            if key not in self._providers:
                # In a thread: importing an SDK would hold up everyone else.
                self._providers[key] = await asyncio.to_thread(
                    open_provider, name, project=project, region=region, sky=self._sky
                )
            return self._providers[key]

    async def host(self, name: str) -> RouterHost:
        """Return an opened host of routers.

        Raises:
            InvalidInput: `unknown_provider`: there is none of that name.
            MissingDependency: it needs what is not installed.
        """
        async with self._opening["host", name]:
            if name not in self._hosts:
                self._hosts[name] = await asyncio.to_thread(open_host, name, sky=self._sky)
            return self._hosts[name]

    async def close(self) -> None:
        """Let go of all connections; one that does not close in time is left."""
        everything: list[Provider | RouterHost] = [*self._providers.values(), *self._hosts.values()]
        for opened in everything:
            with suppress(TandemnError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await opened.close()

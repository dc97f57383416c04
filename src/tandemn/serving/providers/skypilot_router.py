"""SkyPilot as a host of routers: a small machine for each, on every cloud that SkyPilot has.

Its machine is on demand and has no end of its own. It is told its table at the start, by SkyPilot's secrets, and over its
own admin endpoint from then on; whether it is there is asked of itself first, and of SkyPilot where it does not answer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from tandemn import settings
from tandemn.errors import NotFound, Retryable, TandemnError
from tandemn.fleet.launchers import wheel
from tandemn.placement.catalog.skypilot import CATALOGS, find_machine
from tandemn.protocol.deployments import BackendState
from tandemn.serving.certificate import read_certificate, trusted
from tandemn.serving.providers import faults
from tandemn.serving.providers.provider import Account, Remote
from tandemn.serving.providers.router_calls import RouterCalls
from tandemn.serving.providers.sky_calls import REQUESTS_READ, SkyCalls
from tandemn.serving.providers.skypilot_router_task import (
    GRACE_S,
    INSTANCES,
    NO_PORTS,
    PORT,
    ROUTER_PREFIX,
    cluster_name,
    router_request,
    router_task,
)
from tandemn.serving.router_host import SKYPILOT_HOST, RouterPlan, RouterSetup, RouterStatus
from tandemn.skypilot.clouds import enabled_clouds
from tandemn.skypilot.environment import SkyPilot, member, task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.settings import Settings

#: How long ending a machine may take; the next `delete` waits on.
DOWN_S = 600.0
#: Longest answer of a router's own endpoints, in seconds.
ANSWER_S = 10.0
#: Lines of its log that tell why it ended.
QUOTED_LINES = 15

#: Statuses of its command on the machine: it may come to answer, or has ended as it cannot help.
_COMING = frozenset({"INIT", "PENDING", "SETTING_UP", "RUNNING"})
_FAILED = frozenset({"FAILED", "FAILED_SETUP", "FAILED_DRIVER"})


class SkyPilotRouters:
    """Adapter of SkyPilot.

    Args:
        sky: SkyPilot's environment.
        loaded: settings of this machine.
        grace_s: how long streams under way have when a router is to end.
        is_shared: whether somebody else closes `sky`.
    """

    name = SKYPILOT_HOST

    def __init__(
        self, sky: SkyPilot, loaded: Settings, *, grace_s: float = GRACE_S, is_shared: bool = False
    ) -> None:
        self._sky = sky
        self._calls = SkyCalls(sky, is_shared=is_shared)
        self._settings = loaded
        self._grace_s = grace_s
        self._routers = RouterCalls(ANSWER_S, partial(trusted, loaded))
        #: When its command was told to end, by cluster.
        self._told_at: dict[str, float] = {}

    @classmethod
    def open(cls) -> Self:
        """Open SkyPilot as the settings name it; its worker starts with the first call."""
        loaded = settings.load()
        return cls(SkyPilot(loaded.skypilot_python, loaded.home_path / "logs" / "skypilot.log"), loaded)

    @classmethod
    def over(cls, sky: SkyPilot) -> Self:
        """Share an environment that somebody else closes."""
        return cls(sky, settings.load(), is_shared=True)

    async def check(self) -> Account:
        clouds = await asyncio.to_thread(enabled_clouds, self._sky)
        if not clouds:
            raise faults.credentials(self.name, "no cloud lets SkyPilot in")
        return Account(provider=self.name, detail=f"SkyPilot on {', '.join(clouds)}")

    def plan(self, spec: DeploymentSpec) -> RouterPlan:
        certificate = read_certificate(self._settings)
        region, machine = spec.router_region, None
        if region is None and spec.router_cloud == spec.spots_cloud:
            region = spec.region
        if spec.router_cloud in INSTANCES:
            machine = find_machine(
                self._sky.home / CATALOGS,
                provider=spec.router_cloud,
                instance_type=INSTANCES[spec.router_cloud],
                region=region,
            )
        digest = None if certificate is None else certificate.fingerprint.hex()
        return RouterPlan(
            host=self.name,
            remote_name=cluster_name(spec.service_name),
            # Where the price is known, it is that place's.
            request=router_request(spec, region if machine is None else machine.region, digest),
            usd_per_hour=None if machine is None else machine.usd_per_hour,
            price_source="" if machine is None else machine.source,
            warnings=() if certificate is not None else (UNENCRYPTED,),
        )

    async def ensure(self, plan: RouterPlan, setup: RouterSetup) -> Remote:
        name = plan.remote_name
        if await self._launches(name):
            return self._remote(name, None)
        record = await self._record(name)
        if record is not None and record["status"] == "UP":
            url = await self._url(record)
            if url is not None and await self._adopts(name, url, setup):
                return self._remote(name, url)
        certificate = await asyncio.to_thread(read_certificate, self._settings)
        built = await asyncio.to_thread(wheel.build_for_router, self._settings.home_path / "wheels")
        config = router_task(plan.request, built, setup, None if certificate is None else certificate.pem)
        await self._calls.do("launch", answer="request", task=task(config), cluster_name=name)
        return self._remote(name, None)

    async def push(self, remote: Remote, setup: RouterSetup) -> None:
        if remote.url is None:
            raise faults.not_found(self.name, remote.remote_name)
        status = await self._put(remote.url, setup)
        if status in {401, 403}:
            raise faults.conflict(self.name, f"the router of {remote.remote_name} has another admin key")

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        del place
        records = await self._calls.do("status", refresh=member("StatusRefreshMode", "AUTO"))
        names = {str(each["name"]) for each in records}
        names |= {
            str(each["cluster_name"]) for each in await self._calls.do("api_status") if _is_launch(each)
        }
        return [
            self._remote(name, None)
            for name in sorted(names)
            if name.startswith(ROUTER_PREFIX) and remote_name in (None, name)
        ]

    async def status(self, remote: Remote) -> RouterStatus:
        if remote.url is not None and await self._routers.is_up(remote.url):
            return RouterStatus(state=BackendState.READY, url=remote.url)
        name = remote.remote_name
        if await self._launches(name):
            return RouterStatus(state=BackendState.PROVISIONING, reason="SkyPilot launches its machine")
        record = await self._record(name)
        if record is None or record["status"] != "UP":
            return await self._not_up(name, record)
        url = await self._url(record)
        if url is not None and await self._routers.is_up(url):
            return RouterStatus(state=BackendState.READY, url=url)
        return await self._silent(name, url)

    async def delete(self, remote_name: str, place: str = "") -> bool:
        del place
        if requests := await self._launches(remote_name):
            await self._calls.do("api_cancel", request_ids=requests, silent=True)
        record = await self._record(remote_name)
        if record is None:
            return not requests
        if record["status"] == "UP" and not await self._has_drained(remote_name):
            return False
        with suppress(NotFound):
            await self._calls.do("down", within_s=DOWN_S, cluster_name=remote_name)
        self._told_at.pop(remote_name, None)
        return await self._record(remote_name) is None

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        return (await self._tail(remote.remote_name, lines)).splitlines() if lines > 0 else []

    async def close(self) -> None:
        await self._routers.close()
        await self._calls.close()

    # --- the router itself ---

    async def _adopts(self, name: str, url: str, setup: RouterSetup) -> bool:
        """Give the router that is there this setup; False where it must be started anew to take it."""
        try:
            return await self._put(url, setup) not in {401, 403}
        except _OtherCertificate:
            return False
        except Retryable:
            if await self._command(name) in _COMING:
                raise  # it may be starting
            return False

    async def _put(self, url: str, setup: RouterSetup) -> int:
        try:
            async with self._routers.put(url, setup) as answer:
                if answer.status in {200, 401, 403}:
                    return answer.status
                raise faults.refused(self.name, faults.shown(await answer.text(), (setup.admin_key,)))
        except aiohttp.ServerFingerprintMismatch as exc:
            raise _OtherCertificate from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise faults.unavailable(self.name, f"the router at {url}: {faults.shown(exc)}") from exc

    # --- what SkyPilot knows ---

    async def _record(self, name: str) -> dict[str, Any] | None:
        """Ask the cloud for its machine."""
        force = member("StatusRefreshMode", "FORCE")
        records = await self._calls.do("status", cluster_names=[name], refresh=force)
        return next((each for each in records if each["name"] == name), None)

    async def _launches(self, name: str) -> list[str]:
        """Launches of it under way."""
        requests = await self._calls.do("api_status", cluster_name=name)
        return [str(each["request_id"]) for each in requests if _is_launch(each, name)]

    async def _url(self, record: dict[str, Any]) -> str | None:
        """Where clients reach it; None while nobody can tell."""
        handle = record["handle"] if isinstance(record.get("handle"), dict) else {}
        scheme = "http" if self._settings.router_cert is None else "https"
        if str(handle.get("cloud") or record.get("cloud") or "").lower() in NO_PORTS:
            return f"{scheme}://{handle['head_ip']}:{PORT}" if handle.get("head_ip") else None
        with suppress(TandemnError):
            endpoints = await self._calls.do("endpoints", cluster=record["name"], port=PORT)
            if address := endpoints.get(str(PORT)):
                return f"{scheme}://{str(address).rpartition('//')[2].rstrip('/')}"
        return None

    async def _not_up(self, name: str, record: dict[str, Any] | None) -> RouterStatus:
        """Tell one that could not be launched from one that is not there."""
        requests = await self._calls.do("api_status", all_status=True, limit=REQUESTS_READ, cluster_name=name)
        failure = await self._calls.why_failed(each for each in requests if _is_launch(each, name))
        if failure is not None and not isinstance(failure, NotFound):
            return RouterStatus(state=BackendState.FAILED, reason=failure.message)
        if record is not None and record["status"] == "INIT":
            return RouterStatus(state=BackendState.PROVISIONING, reason="its machine is not up")
        # Nothing, or a machine that somebody stopped: the next `ensure` starts it.
        return RouterStatus(state=BackendState.DELETED)

    async def _silent(self, name: str, url: str | None) -> RouterStatus:
        """Say what is known of one whose machine is up, and that does not answer."""
        command = await self._command(name)
        if command in _FAILED:
            words = " | ".join((await self._tail(name, QUOTED_LINES)).splitlines())
            return RouterStatus(state=BackendState.FAILED, url=url, reason=f"{command}: {words}")
        if command in _COMING:
            reason = "it starts" if url is None else f"it does not answer at {url}"
            return RouterStatus(state=BackendState.PROVISIONING, url=url, reason=reason)
        return RouterStatus(state=BackendState.DELETED)

    async def _command(self, name: str) -> str | None:
        """Status of its command."""
        statuses = await self._calls.do("job_status", cluster_name=name)
        return next((str(each) for each in statuses.values()), None)

    async def _has_drained(self, name: str) -> bool:
        """Tell its command to end, and wait for its streams to; True when they had their time."""
        if name not in self._told_at:
            if await self._command(name) != "RUNNING":
                return True  # told by a control plane before this one, or never begun
            await self._calls.do("cancel", cluster_name=name, all=True)
            self._told_at[name] = time.monotonic()
        return time.monotonic() - self._told_at[name] >= self._grace_s

    async def _tail(self, name: str, lines: int) -> str:
        return await self._calls.read("tail_logs", cluster_name=name, job_id=None, follow=False, tail=lines)

    def _remote(self, name: str, url: str | None) -> Remote:
        return Remote(provider=self.name, remote_name=name, remote_id=name, url=url)


#: What a plan warns of.
UNENCRYPTED = (
    "the router's machine speaks HTTP: prompts and keys cross the network unencrypted; TANDEMN_ROUTER_CERT names a "
    "certificate for HTTPS"
)


class _OtherCertificate(Retryable):
    """It serves HTTPS with a certificate that is not the one of the settings."""

    def __init__(self) -> None:
        super().__init__("the router has another certificate", code="provider_unavailable")


def _is_launch(request: dict[str, Any], cluster: str | None = None) -> bool:
    return str(request["name"]).endswith("launch") and cluster in (None, request.get("cluster_name"))

"""This machine as a host of routers: one detached process for each deployment."""

from __future__ import annotations

import asyncio
import signal
from decimal import Decimal
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

import aiohttp

from tandemn import settings
from tandemn.fleet.engines.process import log_tail
from tandemn.protocol.deployments import BackendState
from tandemn.serving.local.router import HOST, RouterFolder, routers
from tandemn.serving.providers import faults
from tandemn.serving.providers.provider import CALL_S, REMOTE_PREFIX, Account, Remote, remote_name
from tandemn.serving.providers.router_calls import RouterCalls
from tandemn.serving.router_host import LOCAL_HOST, RouterPlan, RouterSetup, RouterStatus
from tandemn.settling import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tandemn.errors import TandemnError
    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.local.router import RouterRecord
    from tandemn.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

#: How long `delete` waits for a router that lets its streams finish, in seconds; the next call waits on.
STOP_S = 3.0
#: Between two looks at one that ends.
LOOK_S = 0.02
#: When to look again: it is on this machine.
STATUS_S = 1.0
#: Longest answer of a router's own endpoints, in seconds.
ANSWER_S = 5.0


class LocalRouters:
    """Adapter of this machine.

    Args:
        loaded: its settings.
        call_s: longest single call, in seconds.
    """

    name = LOCAL_HOST

    def __init__(self, loaded: Settings, *, call_s: float = CALL_S) -> None:
        self._settings = loaded
        self._call_s = call_s
        self._routers = RouterCalls(ANSWER_S)

    @classmethod
    def open(cls) -> Self:
        return cls(settings.load())

    async def check(self) -> Account:
        folder = routers(self._settings.home_path)
        await self._do(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        return Account(provider=self.name, detail=f"this machine, in {folder}")

    def plan(self, spec: DeploymentSpec) -> RouterPlan:
        return RouterPlan(
            host=self.name,
            remote_name=remote_name(spec.service_name),
            usd_per_hour=Decimal(0),
            price_source="this machine",
        )

    async def ensure(self, plan: RouterPlan, setup: RouterSetup) -> Remote:
        folder = self._folder(plan.remote_name)
        record = await self._do(folder.want, setup.table, setup.admin_key)
        if not await self._do(folder.start):
            await self._put(folder, record, setup)
        return _remote(plan.remote_name, record)

    async def push(self, remote: Remote, setup: RouterSetup) -> None:
        folder = self._folder(remote.remote_name)
        record = await self._do(folder.record)
        if record is None or not await self._do(folder.is_running):
            raise faults.not_found(self.name, remote.remote_name)
        await self._put(folder, record, setup)

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        del place
        found = []
        for name in await self._do(self._names) if remote_name is None else [remote_name]:
            folder = self._folder(name)
            record = await self._do(folder.record)
            if record is not None or await self._do(folder.is_running):
                found.append(_remote(name, record))
        return found

    async def status(self, remote: Remote) -> RouterStatus:
        folder = self._folder(remote.remote_name)
        record, process = await self._do(folder.record), await self._do(folder.process)
        if record is None or process is None:
            # One that has died is started again by the next `ensure`.
            return RouterStatus(state=BackendState.DELETED, look_s=STATUS_S)
        is_up = await self._routers.is_up(_url(record), record.admin_key)
        return RouterStatus(
            state=BackendState.READY if is_up else BackendState.PROVISIONING,
            url=_url(record),
            pid=process.pid,
            reason=None if is_up else "it starts",
            look_s=STATUS_S,
        )

    async def delete(self, remote_name: str, place: str = "") -> bool:
        del place
        folder = self._folder(remote_name)
        # First this: its fleet process would start it again.
        await self._do(folder.forget)
        await self._do(folder.signal, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        until = loop.time() + STOP_S
        while await self._do(folder.is_running):
            if loop.time() > until:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        tail = await self._do(log_tail, self._folder(remote.remote_name).log)
        return tail.splitlines()[-lines:] if lines > 0 else []

    async def close(self) -> None:
        await self._routers.close()

    def _folder(self, remote_name: str) -> RouterFolder:
        return RouterFolder(self._settings, remote_name)

    def _names(self) -> list[str]:
        return sorted(path.name for path in routers(self._settings.home_path).glob(f"{REMOTE_PREFIX}*"))

    async def _put(self, folder: RouterFolder, record: RouterRecord, setup: RouterSetup) -> None:
        """Give a running router its table."""
        async with (
            faults.translated(self.name, (aiohttp.ClientError,), self._translate, limit_s=self._call_s),
            self._routers.put(_url(record), setup) as answer,
        ):
            if answer.status == 200:
                return
            detail = faults.shown(await answer.text(), (setup.admin_key,))
            if answer.status == 401:
                # It was started with another key: once it has ended it is started with this one.
                await self._do(folder.signal, signal.SIGTERM)
                raise faults.unavailable(self.name, "the router has another admin key; it is started again")
            raise faults.refused(self.name, detail)

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Touch the disk or a process, in a thread: a disk can be slow."""
        async with faults.translated(self.name, (), self._translate, limit_s=self._call_s):
            return await settled(asyncio.to_thread(call, *args, **kwargs), patience_s=self._call_s)

    def _translate(self, exc: Exception) -> TandemnError:
        return faults.unavailable(self.name, faults.shown(exc))


def _url(record: RouterRecord) -> str:
    return f"http://{HOST}:{record.port}"


def _remote(remote_name: str, record: RouterRecord | None) -> Remote:
    return Remote(
        provider=LOCAL_HOST,
        remote_name=remote_name,
        remote_id=remote_name,
        url=None if record is None else _url(record),
    )

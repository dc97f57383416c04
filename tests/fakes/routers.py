"""A host of routers that keeps them in memory: what each was told last, and faults at any call."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tandemn.errors import NotFound, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.serving.providers.provider import Account, Remote, remote_name
from tandemn.serving.router_host import RouterPlan, RouterSetup, RouterStatus


@dataclass
class ScriptedHost:
    """The routers that run are `running`; a call that is named in `faults` raises what stands there."""

    name: str = "local"
    running: dict[str, RouterSetup] = field(default_factory=dict)
    faults: dict[str, TandemnError] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    starts: int = 0

    @classmethod
    def open(cls) -> ScriptedHost:
        return cls()

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call in self.faults:
            raise self.faults[call]

    async def check(self) -> Account:
        return Account(provider=self.name, detail="")

    def plan(self, spec: Any) -> RouterPlan:
        return RouterPlan(host=self.name, remote_name=remote_name(spec.service_name), usd_per_hour=Decimal(0))

    async def ensure(self, plan: RouterPlan, setup: RouterSetup) -> Remote:
        self._called("ensure")
        if plan.remote_name not in self.running:
            self.starts += 1
        self.running[plan.remote_name] = setup
        return self._remote(plan.remote_name)

    async def push(self, remote: Remote, setup: RouterSetup) -> None:
        self._called("push")
        if remote.remote_name not in self.running:
            raise NotFound("no such router", code="provider_not_found")
        self.running[remote.remote_name] = setup

    async def find(self, remote_name: str | None = None, place: str = "") -> list[Remote]:
        self._called("find")
        return [self._remote(name) for name in sorted(self.running) if remote_name in (None, name)]

    async def status(self, remote: Remote) -> RouterStatus:
        self._called("status")
        there = remote.remote_name in self.running
        return RouterStatus(
            state=BackendState.READY if there else BackendState.DELETED,
            url=self._remote(remote.remote_name).url if there else None,
            pid=4242 if there else None,
        )

    async def delete(self, remote_name: str, place: str = "") -> bool:
        self._called("delete")
        self.running.pop(remote_name, None)
        return True

    async def logs(self, remote: Remote, lines: int) -> list[str]:
        return [f"{remote.remote_name} serves"][:lines]

    async def close(self) -> None:
        pass

    def _remote(self, name: str) -> Remote:
        return Remote(provider=self.name, remote_name=name, remote_id=name, url=f"http://router/{name}")

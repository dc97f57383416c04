"""What the control plane's parts share: opened once by app.py, passed on, never global."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandemn.control.access.open_requests import OpenRequests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.batch.leases import LeaseDesk
    from tandemn.batch.redis_queue import RedisQueue
    from tandemn.clock import Clock
    from tandemn.control.clouds import Clouds
    from tandemn.control.leadership import Leadership
    from tandemn.control.model_shapes import ModelShapes
    from tandemn.control.providers import Providers
    from tandemn.control.store.database import Database
    from tandemn.fleet.launchers.launcher import Launcher
    from tandemn.objects import ObjectStore
    from tandemn.placement.quota import QuotaReader
    from tandemn.serving.keyring import Keyring
    from tandemn.settings import Settings


class Pulse:
    """Wakes whoever waits for a job to change: long polls and the supervisor need not sleep it out."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}

    def beat(self, job_id: str) -> None:
        """Wake those who wait for this job (`*`: for none in particular), and those who wait for any."""
        for name in (job_id, "*"):
            if event := self._waiting.pop(name, None):
                event.set()

    async def wait(self, job_id: str, timeout_s: float) -> None:
        """Return at the job's next beat, or after `timeout_s`; `*` is any job."""
        event = self._waiting.setdefault(job_id, asyncio.Event())
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    settings: Settings
    clock: Clock
    database: Database
    objects: ObjectStore
    queue: RedisQueue
    desk: LeaseDesk
    launchers: Mapping[str, Launcher]
    clouds: Clouds
    leadership: Leadership
    providers: Providers
    keyring: Keyring
    quotas: QuotaReader
    shapes: ModelShapes
    server_url: str
    """Where replicas call back."""
    local_key: str
    """What the command line on this machine shows: it stands in `server.json`, and dies with this process."""
    listening_since: float
    """When this control plane began to listen: nobody was silent before that."""
    leasing_from: float = 0.0
    """No chunk is given before: replicas that outlived a control plane renew what they hold first."""
    pulse: Pulse = field(default_factory=Pulse)
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    online: Pulse = field(default_factory=Pulse)
    """As `pulse`, for deployments, by their names."""

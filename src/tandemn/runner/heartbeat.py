"""Reports to the control plane, renews the leases, and hears orders, until the runner ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from tandemn.errors import InvalidInput, TandemnError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tandemn.client import ReplicaClient
    from tandemn.protocol.replicas import Heartbeat, HeartbeatReply

#: Calls in a row that must fail before silence counts: a process that was stopped and wakes has to ask first.
_FAILURES = 3
#: After a failed report the next one does not wait for its turn: leases run out, and another control plane may answer.
_AGAIN_S = 1.0

_log = structlog.get_logger()


class Pulse:
    """One per runner.

    Args:
        client: the control plane.
        report: makes the heartbeat.
        on_reply: acts on the answer.
        on_rejected: told that the control plane does not know this replica (any more).
    """

    def __init__(
        self,
        client: ReplicaClient,
        report: Callable[[], Awaitable[Heartbeat]],
        on_reply: Callable[[HeartbeatReply], None],
        on_rejected: Callable[[TandemnError], None],
    ) -> None:
        self._client = client
        self._report = report
        self._on_reply = on_reply
        self._on_rejected = on_rejected
        self._now = asyncio.Event()
        self._heard = time.monotonic()
        self._failures = 0

    @property
    def silent_s(self) -> float:
        """How long the control plane has been silent, 0 while it answers."""
        return time.monotonic() - self._heard if self._failures >= _FAILURES else 0.0

    def beat_now(self) -> None:
        """Report at once: the state changed."""
        self._now.set()

    async def run(self, heartbeat_s: float) -> None:
        """Report every `heartbeat_s`, until cancelled."""
        while True:
            self._now.clear()
            await self._beat()
            try:
                async with asyncio.timeout(min(heartbeat_s, _AGAIN_S) if self._failures else heartbeat_s):
                    await self._now.wait()
            except TimeoutError:
                pass

    async def _beat(self) -> None:
        try:
            reply = await self._client.heartbeat(await self._report())
        except InvalidInput as exc:
            self._on_rejected(exc)
        except TandemnError as exc:
            self._failures += 1
            _log.info("heartbeat failed", error=exc.message, code=exc.code, failures=self._failures)
        else:
            self._failures = 0
            self._heard = time.monotonic()
            self._client.know_servers(reply.servers)
            self._on_reply(reply)

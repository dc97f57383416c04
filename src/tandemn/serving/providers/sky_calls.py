"""SkyPilot's functions as adapters call them: in a thread, within a limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tandemn.errors import TandemnError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tandemn.skypilot.environment import SkyPilot

#: How long a call may take: SkyPilot's API server may have to start first, which took 40 to 115 s.
SKY_CALL_S = 150.0
#: Requests of SkyPilot's API server that are read to find out why something did not come up.
REQUESTS_READ = 200


class SkyCalls:
    """One adapter's.

    Args:
        sky: SkyPilot's environment.
        is_shared: whether somebody else closes it.
    """

    def __init__(self, sky: SkyPilot, *, is_shared: bool) -> None:
        self._sky = sky
        self._is_shared = is_shared

    async def do(self, function: str, *, within_s: float = SKY_CALL_S, **arguments: Any) -> Any:
        """Call and return what it answers. Raises TandemnError."""
        return await asyncio.to_thread(self._sky.call, function, within_s=within_s, **arguments)

    async def read(self, function: str, **arguments: Any) -> str:
        """Call one that writes, and return the text. Raises TandemnError."""
        return await asyncio.to_thread(
            self._sky.read, function, "output_stream", within_s=SKY_CALL_S, **arguments
        )

    async def why_failed(self, requests: Iterable[Mapping[str, Any]]) -> TandemnError | None:
        """Say what the latest of these requests failed of; None: it did not, or there is none."""
        latest = max(requests, key=lambda each: each.get("created_at") or 0.0, default=None)
        if latest is not None and latest["status"] == "FAILED":
            try:
                await self.do("get", request_id=latest["request_id"])
            except TandemnError as exc:
                return exc
        return None

    async def close(self) -> None:
        if not self._is_shared:
            await asyncio.to_thread(self._sky.close)

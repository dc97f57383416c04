"""Calls to a router's own endpoints, as whoever hosts it makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tandemn.serving.router_host import RouterSetup


class RouterCalls:
    """One session for all routers of a host; it is opened when it is needed.

    Args:
        answer_s: longest answer, in seconds.
        trust: says whom it takes for a router that serves HTTPS.
    """

    def __init__(
        self, answer_s: float, trust: Callable[[], aiohttp.Fingerprint | bool] = lambda: True
    ) -> None:
        self._answer_s = answer_s
        self._trust = trust
        self._session: aiohttp.ClientSession | None = None

    async def is_up(self, url: str, admin_key: str | None = None) -> bool:
        """Whether it answers that it is well; with a key, whether it is the router that has it.

        Two state folders of one machine may give their routers the same port at the same moment.
        """
        headers = {} if admin_key is None else {"Authorization": f"Bearer {admin_key}"}
        try:
            async with self._http().get(
                f"{url}/router/health", headers=headers, ssl=self._trust(), allow_redirects=False
            ) as answer:
                # Only to whom it knows it tells its backends.
                return answer.status == 200 and (admin_key is None or "backends" in await answer.json())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False

    def put(self, url: str, setup: RouterSetup) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Give it its table, which it writes to its file before it answers."""
        return self._http().put(
            f"{url}/router/config",
            data=setup.table,
            headers={"Authorization": f"Bearer {setup.admin_key}"},
            ssl=self._trust(),
            allow_redirects=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._answer_s))
        return self._session

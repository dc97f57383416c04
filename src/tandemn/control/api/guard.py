"""Keeps web pages out: a page in the user's browser may reach loopback, but has nothing to say here.

A control plane on loopback asks for no key, so what a browser would send on a page's behalf is refused:
requests with an Origin, and requests to a name that only a rebound DNS entry makes ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control.api.failures import answer
from tandemn.errors import NotAllowed

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK = (b"127.0.0.1", b"localhost", b"[::1]")


class BrowserGuard:
    """ASGI middleware; `hosts` are further names by which this server may be called."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = ()) -> None:
        self._app = app
        self._hosts = frozenset((*_LOOPBACK, *(host.encode() for host in hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                strange_host = name == b"host" and _without_port(value) not in self._hosts
                if name == b"origin" or strange_host:
                    error = NotAllowed("this API is not for web pages", code="browser_refused")
                    await answer(error, 403)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _without_port(host: bytes) -> bytes:
    head, colon, port = host.rpartition(b":")
    return head if colon and port.isdigit() else host

"""Keeps web pages and proxies out of a control plane without keys, which takes who reaches it for its owner.

A page in the user's browser may reach loopback, and so may a proxy in front of it. What they would send on
somebody's behalf is refused: requests with an Origin, requests to a name that only a rebound DNS entry makes
ours, requests that were passed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.errors import Forbidden

if TYPE_CHECKING:
    from starlette.types import Scope

_LOOPBACK = frozenset({b"127.0.0.1", b"localhost", b"[::1]"})
_PASSED_ON = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})


def refuse_strangers(scope: Scope) -> None:
    """Raise Forbidden where a page or a proxy may have sent this."""
    for name, value in scope["headers"]:
        if name in _PASSED_ON:
            raise Forbidden(
                "this control plane has no keys, so it serves its own machine only, and no proxy",
                code="proxied_without_keys",
                next_step="tandemn keys create NAME --role admin",
            )
        if name == b"origin" or (name == b"host" and _without_port(value) not in _LOOPBACK):
            raise Forbidden("this API is not for web pages", code="browser_refused")


def _without_port(host: bytes) -> bytes:
    head, colon, port = host.rpartition(b":")
    return head if colon and port.isdigit() else host

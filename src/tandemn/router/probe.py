"""Ask a backend how it is: one request on a connection of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tandemn.router.request import Request
from tandemn.router.routing import ProbeResult
from tandemn.router.upstream import CONNECT_ERRORS

if TYPE_CHECKING:
    from tandemn.router.router import BackendRuntime

#: Seconds that a probe may take in all: a backend that is slower than this is not well.
PROBE_LIMIT_S: Final = 5.0


async def probe(backend: BackendRuntime) -> ProbeResult:
    """Well is a 2xx answer to the health path; nothing else that a server says is."""
    target = backend.spec.health_path.encode()
    wire = backend.wire(Request(b"GET", target), target, b"Connection: close\r\n\r\n")
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            upstream = await backend.pool.open()
            begun: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            upstream.feed = lambda data: None if begun.done() else begun.set_result(data)
            upstream.lost = lambda _, __: None if begun.done() else begun.set_result(b"")
            try:
                upstream.write(wire)
                first = await begun
            finally:
                upstream.drop()
    except CONNECT_ERRORS:
        return ProbeResult.ABSENT
    is_well = first.startswith(b"HTTP/1.") and first[8:10] == b" 2"
    return ProbeResult.WELL if is_well else ProbeResult.BUSY

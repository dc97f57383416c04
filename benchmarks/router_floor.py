"""The floor that `router.py` measures against: bytes from one socket to another and nothing else.

    python benchmarks/router_floor.py PORT BACKEND_PORT

No HTTP, no pool, no limits: each client connection has a backend connection of its own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop


class End(asyncio.Protocol):
    def __init__(self, other: End | None = None) -> None:
        self.other = other
        self.early: list[bytes] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.other is None:
            asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.other = await loop.create_connection(lambda: End(self), "127.0.0.1", int(sys.argv[2]))
        for piece in self.early:
            self.other.transport.write(piece)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(End, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

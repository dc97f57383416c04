"""The router without a network: what the transports on both sides would carry is a list of bytes."""

from __future__ import annotations

import json
from typing import Any

from tandemn.router.downstream import Client
from tandemn.router.router import Keys, Router
from tandemn.router.table import read_table
from tandemn.router.upstream import Upstream


class Wire:
    """What a transport is told to write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True

    close = abort

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    @property
    def content(self) -> bytes:
        return b"".join(self.written)

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Wires:
    """A router, a client's connection to it, and a pooled connection of its to a backend."""

    upstream: Any
    client: Any
    wire: Any

    def __init__(self, *, key: str | None = None, **spec: Any) -> None:
        backend = {"name": "a", "market": "serverless", "url": "http://x", **spec}
        table = read_table(json.dumps({"version": 1, "backends": [backend]}).encode())
        self.router = Router(table, Keys(client=key))
        self.router.apply(table)
        self.upstream = self.other_upstream()
        self.upstream.pool.put(self.upstream)
        self.wire = Wire()
        self.client = Client(self.router)
        self.client.connection_made(self.wire)

    def other_upstream(self) -> Any:
        """One more connection to the backend."""
        upstream: Any = Upstream(self.router.backends["a"].pool)
        upstream.transport = Wire()
        upstream.write = upstream.transport.write
        return upstream

    @property
    def sent(self) -> bytes:
        """What went to the backend."""
        content: bytes = self.upstream.transport.content
        return content

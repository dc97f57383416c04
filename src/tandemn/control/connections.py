"""Connections in bounds: so many, no slower than this, no larger heads than this.

uvicorn's protocol waits for ever for the end of a request's head, keeps as much of it as it is sent, and for
ever for a reader that does not read. Here each connection that does such things is closed.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

#: Connections at a time. Each takes some tens of kB, and a file descriptor.
MOST_CONNECTIONS = 4096
#: How many of them one address may hold. Replicas of a whole cloud may come from one.
MOST_PER_ADDRESS = MOST_CONNECTIONS // 2
#: How long the head of a request may take to arrive, from its first byte, or from the connection's start.
HEAD_S = 15.0
#: Bytes of the head of a request, and of whatever else is no body.
HEAD_BYTES = 64 * 1024
#: How long a reader may leave an answer's buffer full.
READER_S = 120.0
#: Requests of one connection that may wait for the one before.
PIPELINED = 32


class Connections:
    """Counts those of all listeners of one server."""

    def __init__(self, *, most: int = MOST_CONNECTIONS, most_per_address: int = MOST_PER_ADDRESS) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a connection; False where there are too many already. This machine's own share is all of them."""
        share = self._most if _is_loopback(address) else self._most_per_address
        if self._by_address.total() >= self._most or self._by_address[address] >= share:
            return False
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def guarded(connections: Connections) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with these bounds."""

    class Guarded(_Guarded):
        counted_by = connections

    return Guarded


class _Guarded(HttpToolsProtocol):
    counted_by: Connections

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._address: str | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._is_in_body = False
        #: Bytes since the last that were of use.
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if self.counted_by.enter(address):
            self._address = address
            self._await_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None:
            self.counted_by.leave(self._address)
        self._stop_head_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and not self._is_in_body:
            self._await_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES or len(self.pipeline) > PIPELINED:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._is_in_body = True
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._is_in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_reader_timer()
        self._reader_timer = self.loop.call_later(READER_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # its reader is gone: closing in order would wait for it
        super().timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False

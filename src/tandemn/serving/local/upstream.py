"""A connection to a replica's engine: one request at a time, kept for the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.serving.local.replica import Replica

#: Bytes that wait for a slow peer before its source is paused.
HIGH_WATER = 128 << 10
#: Idle connections that are kept to a replica: each occupies a thread of llama.cpp's server, busy or not.
MOST_IDLE = 32


class Upstream(asyncio.Protocol):
    """Passes an answer's bytes on unchanged, and tells where the answer ends.

    Whoever uses it sets `on_data`, `on_lost` and `on_paused` for the time that it does.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.on_data: Callable[[bytes], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_paused: Callable[[bool], None] | None = None
        self.is_reused = False
        self.is_complete = False
        """The answer has come to its end."""
        self.has_begun = False
        self._is_head = self._has_length = self._is_kept_alive = False
        self._parser = httptools.HttpResponseParser(self)

    def begin(self, method: bytes) -> None:
        """A request is about to be sent."""
        self.is_complete = self.has_begun = self._has_length = self._is_kept_alive = False
        self._is_head = method == b"HEAD"

    @property
    def may_be_kept(self) -> bool:
        """Whether the connection can carry another request after this answer."""
        return self.is_complete and self._is_kept_alive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        on_data = self.on_data
        if on_data is None:
            self.transport.abort()  # bytes outside an answer
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        on_data(data)

    def eof_received(self) -> bool:
        # An answer without a length ends with its connection.
        if self.has_begun and not self._has_length:
            self.is_complete = True
            if self.on_data is not None:
                self.on_data(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self in self.replica.idle:
            self.replica.idle.remove(self)
        on_lost = self.on_lost
        self.on_data = self.on_lost = self.on_paused = None
        if on_lost is not None:
            on_lost()

    def pause_writing(self) -> None:
        if self.on_paused is not None:
            self.on_paused(True)

    def resume_writing(self) -> None:
        if self.on_paused is not None:
            self.on_paused(False)

    def drop(self) -> None:
        """Close at once: what is still on the way is not wanted."""
        self.on_data = self.on_lost = self.on_paused = None
        self.transport.abort()

    def give_back(self) -> None:
        """The answer is complete: keep the connection where that can be."""
        is_surplus = len(self.replica.idle) >= MOST_IDLE
        if is_surplus or not self.may_be_kept or self.transport.is_closing():
            self.drop()
            return
        self.on_data = self.on_lost = self.on_paused = None
        self.is_reused = True
        self.replica.idle.append(self)

    # --- called by the parser ---

    def on_header(self, name: bytes, value: bytes) -> None:
        del value
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._has_length = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.has_begun = True
        if status in {204, 304} or self._is_head:
            self._has_length = self.is_complete = True

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            # Asked here: the parser forgets the headers with the message. An answer to HEAD never gets here, as
            # it waits for a body: that connection is not kept.
            self._is_kept_alive = self._parser.should_keep_alive()
            self.is_complete = True


async def connect(replica: Replica, host: str, limit_s: float) -> Upstream:
    """Open a connection to the replica's engine. Raises OSError or TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limit_s):
        _, upstream = await loop.create_connection(lambda: Upstream(replica), host, replica.port)
    return upstream

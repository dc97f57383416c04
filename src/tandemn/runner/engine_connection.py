"""One keep-alive HTTP/1.1 connection to the engine on loopback, one request at a time.

This is the runner's hot path: a general HTTP client costs several times as much per request, in CPU time
that an engine on the same cores needs. It sends a fixed head, and gives back status and body bytes;
everything else about the answer is dropped unread.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

#: An answer longer than this is a fault of the engine.
MAX_ANSWER_BYTES = 64 << 20

CONNECT_S = 10.0


class ConnectionLost(ConnectionError):
    """The engine closed or reset the connection, or did not accept one."""


class _Wire(asyncio.Protocol):
    """The protocol side: parses what arrives into one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_fresh = True
        """Whether nothing was ever answered on it."""
        self.has_bytes = False
        """Whether any byte of the present answer has come."""
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def ask(self, content: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self.transport is not None
        assert self._answer is None, "one request at a time"
        self.has_bytes = False
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(content)
        return self._answer

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self._lose("closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.has_bytes = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._lose(f"not HTTP: {exc}")
            self.close()

    def eof_received(self) -> None:
        self._lose("closed by the engine")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._lose(str(exc) if exc else "closed by the engine")

    def on_message_begin(self) -> None:
        self._parts = []
        self._size = 0

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_ANSWER_BYTES:
            self._lose("the answer is too long")
            self.close()
            return
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        if not self._parser.should_keep_alive() and self.transport is not None:
            self.transport.close()
        self.is_fresh = False
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            parts = self._parts
            answer.set_result((status, parts[0] if len(parts) == 1 else b"".join(parts)))

    def _lose(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionLost(reason))


class EngineConnection:
    """Posts request bodies to one path of the engine."""

    def __init__(self, host: str, port: int, path: str, api_key: str | None) -> None:
        self._host, self._port = host, port
        permission = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{permission}"
            "Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: "
        ).encode()
        self._wire: _Wire | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Send one request body and return status and body of the answer.

        Raises:
            ConnectionLost: there was no whole answer. An idle connection that the engine had just let go
                of is opened again first: no byte of an answer had come, so nothing was computed.
        """
        content = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        wire = self._wire
        if wire is not None and wire.is_open:
            try:
                return await wire.ask(content)
            except ConnectionLost:
                if wire.is_fresh or wire.has_bytes:
                    raise
        self._wire = wire = await self._connect()
        return await wire.ask(content)

    async def _connect(self) -> _Wire:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, wire = await loop.create_connection(_Wire, self._host, self._port)
        except (OSError, TimeoutError) as exc:
            raise ConnectionLost(f"cannot connect: {exc}") from exc
        return wire

    def abort(self) -> None:
        """Break off what is under way: a waiting `post` raises ConnectionLost."""
        if self._wire is not None:
            self._wire.close()

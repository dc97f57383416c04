"""The door of a local backend: HTTP in front of replicas that come and go.

As at a cloud's balancer, requests pass through byte for byte and one URL stands for all replicas. A gate says which
replica takes a request, and may have it wait for one that starts. Where a replica dies before its answer has begun,
another one gets the request; after that the connection is cut, so that the router sees it and resumes the stream.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

import httptools
import msgspec

from tandemn.serving.local.replica import HOST, Replica
from tandemn.serving.local.upstream import HIGH_WATER, Upstream, connect

#: Longest head of a request, in bytes.
LONGEST_HEAD = 64 << 10
#: Body that is kept while a request waits, and for another try, in bytes; a longer one waits in the kernel and is
#: sent once.
KEPT_BODY = 256 << 10
#: Replicas that one request is given to.
MOST_TRIES = 3
#: Until a replica's engine has accepted a connection, in seconds.
CONNECT_S = 3.0

_AUTHORIZATION = re.compile(rb"\r\nauthorization:[^\r\n]*", re.IGNORECASE)
_WORDS = {401: "Unauthorized", 429: "Too Many Requests", 503: "Service Unavailable", 504: "Gateway Timeout"}


class Refused(Exception):
    """The request gets this answer from the door itself."""

    def __init__(self, status: int, message: str, *, code: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Gate(Protocol):
    """Who takes a request."""

    def is_ready(self) -> bool:
        """Whether a request would be taken at once; asking starts nothing."""
        ...

    def arrived(self) -> None:
        """A request came."""
        ...

    async def admit(self) -> Replica:
        """Return the replica that takes a request; it counts as in flight there until it is released.

        Raises:
            Refused: nobody takes it.
        """
        ...

    def release(self, replica: Replica) -> None:
        """A request of this replica is over."""
        ...


@dataclass(slots=True, kw_only=True)
class Door:
    """What the connections of one backend share; `key` and `longest_s` may change while it is open."""

    gate: Gate
    key: bytes
    """Asked of every request."""
    longest_s: float | None
    """Longest request, from when a replica took it, in real seconds; None: no limit."""


class Front:
    """One listening port.

    Args:
        door: what it serves.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.port = 0
        self._server: asyncio.Server | None = None
        self._clients: set[Client] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def open(self, wanted_port: int) -> None:
        """Listen on this port, else on any free one."""
        loop = asyncio.get_running_loop()
        for port in dict.fromkeys((wanted_port, 0)):
            with suppress(OSError):
                self._server = await loop.create_server(
                    lambda: Client(self.door, self._clients), HOST, port, backlog=4096
                )
                break
        assert self._server is not None, "port 0 is any that is free"
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Take no more connections and cut those that there are."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.transport.abort()


class Client(asyncio.Protocol):
    """A connection of the router: one request after the other."""

    def __init__(self, door: Door, clients: set[Client]) -> None:
        self._door = door
        self._clients = clients
        self._parser = httptools.HttpRequestParser(self)
        self._head = bytearray()
        self._authorization = b""
        self._exchange: Exchange | None = None
        self._has_message = self._is_head_complete = self._is_message_complete = False
        self._is_pipelined = self._is_kept_alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._clients.discard(self)
        if self._exchange is not None:
            self._exchange.cancel()

    def data_received(self, data: bytes) -> None:
        had_head = self._is_head_complete
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.abort()
            return
        if self._is_pipelined:
            self.transport.abort()  # the router sends no request before it has the answer to the last
            return
        if had_head:
            assert self._exchange is not None, "a head that is complete begins one"
            self._exchange.more(data, is_complete=self._is_message_complete)
            return
        self._head += data
        if self._is_head_complete:
            self._begin()
        elif len(self._head) > LONGEST_HEAD:
            self.transport.abort()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause_answer(is_paused=True)

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause_answer(is_paused=False)

    def _begin(self) -> None:
        head, _, rest = bytes(self._head).partition(b"\r\n\r\n")
        self._head.clear()
        method, _, target = head.partition(b"\r\n")[0].partition(b" ")
        path = target.partition(b" ")[0].partition(b"?")[0]
        exchange = self._exchange = Exchange(self, self._door, method, head)
        exchange.more(rest, is_complete=self._is_message_complete)
        if path == b"/health":
            exchange.answer(200 if self._door.gate.is_ready() else 503)
        elif not hmac.compare_digest(self._authorization, b"Bearer " + self._door.key):
            exchange.refuse(Refused(401, "the engine key is missing or wrong", code="invalid_api_key"))
        else:
            self._door.gate.arrived()
            exchange.start()

    def finished(self, *, is_kept: bool) -> None:
        """The answer has been written: take the next request, or close."""
        is_reusable = is_kept and self._is_message_complete and self._is_kept_alive
        self._exchange = None
        self._has_message = self._is_head_complete = self._is_message_complete = False
        self._authorization = b""
        if is_reusable:
            self.transport.resume_reading()
        else:
            self.transport.close()

    # --- called by the parser ---

    def on_message_begin(self) -> None:
        self._is_pipelined = self._has_message
        self._has_message = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._authorization = value

    def on_headers_complete(self) -> None:
        self._is_head_complete = True

    def on_message_complete(self) -> None:
        self._is_message_complete = True
        self._is_kept_alive = self._parser.should_keep_alive()


class Exchange:
    """One request and its answer."""

    def __init__(self, client: Client, door: Door, method: bytes, head: bytes) -> None:
        self._client = client
        self._door = door
        self._method = method
        self._head = head
        self._body = bytearray()
        self._is_kept = True
        """The whole body so far is in `_body`."""
        self._is_complete = False
        self._has_begun = self._is_answered = False
        self._upstream: Upstream | None = None
        self._ended: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[None] | None = None

    def more(self, data: bytes, *, is_complete: bool) -> None:
        """More of the body has come."""
        self._is_complete = is_complete
        if self._is_kept:
            self._body += data
        if self._upstream is not None:
            self._upstream.transport.write(data)
            if len(self._body) > KEPT_BODY:
                self._is_kept = False
                self._body.clear()
        elif len(self._body) > KEPT_BODY:
            # It waits: the rest stays in the kernel's buffers, and in the router's.
            self._client.transport.pause_reading()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """The client is gone, and what it asked for is not wanted any more."""
        if self._task is not None:
            self._task.cancel()

    def pause_answer(self, *, is_paused: bool) -> None:
        """Slow the engine down to what the client takes."""
        if self._upstream is not None:
            transport = self._upstream.transport
            (transport.pause_reading if is_paused else transport.resume_reading)()

    def refuse(self, refused: Refused) -> None:
        """Answer with an error of our own."""
        error = {"message": refused.message, "type": "server_error", "param": None, "code": refused.code}
        self.answer(refused.status, {"error": error}, refused.retry_after_s)

    def answer(self, status: int, body: object = None, retry_after_s: int | None = None) -> None:
        """Answer without any replica."""
        content = msgspec.json.encode({} if body is None else body)
        lines = [f"HTTP/1.1 {status} {_WORDS.get(status, 'OK')}", "content-type: application/json"]
        lines += [f"content-length: {len(content)}"]
        lines += [] if retry_after_s is None else [f"retry-after: {retry_after_s}"]
        self._client.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        self._client.finished(is_kept=self._is_complete)

    async def _run(self) -> None:
        tries = 0
        while tries < MOST_TRIES:
            try:
                replica = await self._door.gate.admit()
            except Refused as refused:
                self.refuse(refused)
                return
            try:
                async with asyncio.timeout(self._door.longest_s):
                    is_reused = await self._try(replica)
            except TimeoutError:
                if not self._is_answered:
                    self._give_up()
                return
            finally:
                self._drop()
                self._door.gate.release(replica)
            if is_reused is None:
                return
            if self._has_begun or not self._is_kept:
                break
            # A connection that its engine had closed says nothing about the engine.
            tries += not is_reused
        self._client.transport.abort()

    async def _try(self, replica: Replica) -> bool | None:
        """Have a replica answer. None: it did; else whether what broke was a connection used before."""
        upstream = replica.idle.pop() if replica.idle else None
        if upstream is None:
            try:
                upstream = await connect(replica, HOST, CONNECT_S)
            except (OSError, TimeoutError):
                return False
        ended = self._ended = asyncio.get_running_loop().create_future()
        self._upstream = upstream
        upstream.begin(self._method)
        upstream.on_data = self._passed
        upstream.on_lost = self._lost
        upstream.on_paused = self._pause_body
        upstream.transport.write(self._authorized(replica) + self._body)
        if len(self._body) > KEPT_BODY:
            self._is_kept = False
            self._body.clear()
        self._client.transport.resume_reading()
        return None if await ended else upstream.is_reused

    def _authorized(self, replica: Replica) -> bytes:
        return (
            _AUTHORIZATION.sub(b"\r\nAuthorization: Bearer " + replica.key.encode(), self._head) + b"\r\n\r\n"
        )

    def _passed(self, data: bytes) -> None:
        upstream, ended = self._upstream, self._ended
        assert upstream is not None
        assert ended is not None
        self._has_begun = True
        self._client.transport.write(data)
        if upstream.is_complete and not ended.done():
            # Now, not when the task gets to run: the next request may be here before that.
            self._is_answered = True
            self._upstream = None
            is_kept = upstream.may_be_kept
            upstream.give_back()
            ended.set_result(True)
            self._client.finished(is_kept=is_kept)

    def _lost(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(False)

    def _pause_body(self, is_paused: bool) -> None:  # noqa: FBT001 - a callback's only argument
        transport = self._client.transport
        (transport.pause_reading if is_paused else transport.resume_reading)()

    def _drop(self) -> None:
        if self._upstream is not None:
            self._upstream.drop()
            self._upstream = None

    def _give_up(self) -> None:
        if self._has_begun:
            self._client.transport.abort()
        else:
            self.refuse(
                Refused(504, "the request took longer than serverless.timeout", code="request_timeout")
            )

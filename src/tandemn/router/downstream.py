"""A client's connection: parse its requests once, answer them in order, never trust ambiguous framing."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from tandemn.router import wire
from tandemn.router.exchange import Exchange
from tandemn.router.request import HEAD_END, MAX_HEAD_BYTES, OWN_FIELDS, Request
from tandemn.router.upstream import HIGH_WATER
from tandemn.router.wire import CONTINUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.router.router import Router

#: Pipelined requests that wait on one connection before it is read no further.
MAX_PIPELINED: Final = 32


class Incoming:
    """A request whose body is still coming, or that waits for its turn."""

    __slots__ = ("body", "body_bytes", "is_complete", "request")

    def __init__(self) -> None:
        self.request = Request()
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.is_complete = False


class Client(asyncio.Protocol):
    """One connection; requests that are pipelined wait for the one before them."""

    __slots__ = (
        "closes",
        "exchange",
        "head_bytes",
        "heard_at",
        "incoming",
        "is_paused",
        "is_reading_paused",
        "parser",
        "refusal",
        "router",
        "transport",
        "waiting",
        "write",
    )

    transport: asyncio.Transport
    write: Callable[[bytes], None]

    def __init__(self, router: Router) -> None:
        self.router = router
        self.closes = False
        """Whether the connection ends with the answer under way."""
        self.exchange: Exchange | None = None
        self.head_bytes = 0
        self.heard_at = router.ticked_at
        self.incoming: Incoming | None = None
        self.is_paused = False
        """Whether the client takes what it gets too slowly."""
        self.is_reading_paused = False
        self.parser = httptools.HttpRequestParser(self)
        self.refusal = b""
        """What is left to say before closing, once the answers before it are out."""
        self.waiting: deque[Incoming] | None = None

    # --- the connection ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self.router.clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self.refusal:
            return
        self.heard_at = self.router.ticked_at
        is_free = self.incoming is None and self.exchange is None and not self.head_bytes and not self.waiting
        if not is_free or not self._start_plain(data):
            self._parse(data)

    def _start_plain(self, data: bytes) -> bool:
        """Start the request that `data` holds, if it is exactly one and its head a plain one."""
        found = HEAD_END.search(data)
        if found is None or found.end() > MAX_HEAD_BYTES:
            return False
        end = found.end()
        request = self.router.heads.read(data[:end])
        if request is None or len(data) - end != (request.content_length or 0):
            return False
        self._start(request, data[end:])
        return True

    def _parse(self, data: bytes) -> None:
        incoming = self.incoming
        if incoming is None or not incoming.request.method:
            self.head_bytes += len(data)
            is_long = self.head_bytes > MAX_HEAD_BYTES
            if (
                is_long
                and data.find(b"\r\n\r\n", 0, max(0, MAX_HEAD_BYTES - self.head_bytes + len(data))) < 0
            ):
                self._refuse(431, "the request's head is too long", "head_too_long")
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            assert self.refusal, "refused when its head was complete"
        except httptools.HttpParserError as exc:
            self._refuse(400, f"not a valid HTTP request: {exc}", "bad_request")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self.router.clients.discard(self)
        exchange, self.exchange = self.exchange, None
        self.waiting = None
        self.incoming = None
        del self.parser  # it refers to this object: no cycle may be left to the collector
        if exchange is not None:
            exchange.cancel()

    def pause_writing(self) -> None:
        self.is_paused = True
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.transport.resume_reading()

    def pause_reading(self) -> None:
        if not self.is_reading_paused and not self.transport.is_closing():
            self.is_reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_reading_paused and not self.transport.is_closing():
            self.is_reading_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """End the connection so that what was sent looks truncated."""
        self.transport.abort()

    # --- the parser's callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.incoming = Incoming()

    def on_url(self, target: bytes) -> None:
        assert self.incoming is not None
        self.incoming.request.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self.incoming
        assert incoming is not None
        request = incoming.request
        if request.method:
            return  # a trailer: dropped, as RFC 9110 6.5.1 allows where the message is put together anew
        lower = name.lower()
        if lower in OWN_FIELDS:
            request.own_field(lower, value)
        elif lower not in self.router.replaced_fields:
            request.pieces += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        parser = self.parser
        assert self.incoming is not None
        request = self.incoming.request
        request.complete(
            parser.get_method(), parser.get_http_version(), keep_alive=parser.should_keep_alive()
        )
        if parser.should_upgrade() or request.method == b"CONNECT":
            self._refuse(501, "upgrades and CONNECT are not supported", "not_implemented")
        elif request.why_refused:
            self._refuse(400, f"ambiguous framing: {request.why_refused}", "bad_request")
        elif request.expects_continue and self._may_send(request):
            self.write(CONTINUE)

    def _may_send(self, request: Request) -> bool:
        """Whether the body of a request that has just announced itself is wanted, and now."""
        is_next = self.exchange is None and not self.waiting
        return is_next and self.router.why_unauthorized(request) is None

    def on_body(self, piece: bytes) -> None:
        incoming = self.incoming
        assert incoming is not None
        if self.refusal:
            return
        exchange = self.exchange
        if exchange is not None and exchange.incoming is incoming:
            exchange.more_body(piece)
            return
        incoming.body.append(piece)
        incoming.body_bytes += len(piece)
        if incoming.body_bytes > self.router.table.limits.kept_body_bytes:
            if exchange is None and not self.waiting:
                self._start(incoming.request, b"", incoming)
            else:
                self.pause_reading()  # until its turn comes

    def on_message_complete(self) -> None:
        incoming = self.incoming
        assert incoming is not None
        incoming.is_complete = True
        self.incoming = None
        self.head_bytes = 0
        exchange = self.exchange
        if self.refusal:
            return
        if exchange is None and not self.waiting:
            self._start_incoming(incoming)
        elif exchange is not None and exchange.incoming is incoming:
            exchange.body_ended()
        else:
            if self.waiting is None:
                self.waiting = deque()
            self.waiting.append(incoming)
            if len(self.waiting) >= MAX_PIPELINED:
                self.pause_reading()

    # --- requests and answers ---------------------------------------------------------------------------

    def wants_close(self, request: Request) -> bool:
        """Whether the connection should end with this request's answer."""
        return not request.keep_alive or request.version != "1.1" or self.router.is_stopping

    def _start_incoming(self, incoming: Incoming) -> None:
        body = incoming.body
        self._start(incoming.request, body[0] if len(body) == 1 else b"".join(body))

    def _start(self, request: Request, body: bytes, incoming: Incoming | None = None) -> None:
        router = self.router
        exchange = self.exchange = Exchange(router, self, request, body, incoming)
        if request.is_own:
            self._answer_own(exchange, *router.own_endpoint(request, body))
        elif (refused := router.why_unauthorized(request)) is not None:
            router.meter.reject("unauthorized")
            exchange.own_answer(401, refused, fields=b"WWW-Authenticate: Bearer\r\n")
        elif router.is_stopping:
            router.meter.reject("stopping")
            stopping = wire.error_body("the router is stopping", kind="server_error", code="stopping")
            exchange.own_answer(503, stopping, fields=b"Retry-After: 1\r\n")
        else:
            exchange.begin()

    def _answer_own(self, exchange: Exchange, status: int, content_type: bytes, body: bytes) -> None:
        if self.wants_close(exchange.request):
            self.closes = True
        is_head = exchange.request.method == b"HEAD"
        self.write(wire.answer(status, body, content_type=content_type, close=self.closes, head_only=is_head))
        self.exchange_done(exchange)

    def exchange_done(self, exchange: Exchange) -> None:
        """The answer is out: on to the next request, or close."""
        if self.exchange is not exchange:
            return
        self.exchange = None
        self.heard_at = self.router.ticked_at
        incoming = exchange.incoming
        if self.closes or (incoming is not None and not incoming.is_complete):
            # An answer before the request's end: what follows on the connection would be misread.
            self.transport.close()
        elif self.waiting:
            # Not recursively: a pipeline of many quick answers would go deep.
            asyncio.get_running_loop().call_soon(self._next)
        elif self.refusal:
            self.write(self.refusal)
            self.transport.close()
        elif self.router.is_stopping:
            self.transport.close()
        elif self.is_reading_paused:
            self.resume_reading()

    def _next(self) -> None:
        if self.exchange is None and self.waiting and not self.transport.is_closing():
            self._start_incoming(self.waiting.popleft())
            if len(self.waiting or ()) < MAX_PIPELINED:
                self.resume_reading()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Say that the connection's bytes cannot be read any further, after the answers under way."""
        if self.refusal:
            return
        self.router.meter.reject(code)
        body = wire.error_body(message, kind="invalid_request_error", code=code)
        self.refusal = wire.answer(status, body, close=True)
        flowing = self.exchange.incoming if self.exchange is not None else None
        if flowing is not None and not flowing.is_complete:
            self.transport.abort()  # its backend waits for a body that cannot be read
            return
        if self.exchange is None and not self.waiting and not self.transport.is_closing():
            self.write(self.refusal)
            self.transport.close()

"""A client's connection: parse its requests once, answer them in order, never trust ambiguous framing."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from tandemn.router import wire
from tandemn.router.exchange import Exchange
from tandemn.router.upstream import HIGH_WATER
from tandemn.router.wire import CONTINUE, MAX_HEAD_BYTES, OWN_FIELDS, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.router.router import Router

#: Pipelined requests that wait on one connection before it is read no further.
MAX_PIPELINED: Final = 32


class Client(asyncio.Protocol):
    """One connection; requests that are pipelined wait for the one before them."""

    __slots__ = (
        "closes",
        "exchange",
        "head_bytes",
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
        self.incoming: Request | None = None
        self.is_paused = False
        """Whether the client takes what it gets too slowly."""
        self.is_reading_paused = False
        self.parser = httptools.HttpRequestParser(self)
        self.refusal = b""
        """What is left to say before closing, once the answers before it are out."""
        self.waiting: deque[Request] | None = None

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
        incoming = self.incoming
        if incoming is None or not incoming.method:
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
            self._refuse(501, "upgrades and CONNECT are not supported", "not_implemented")
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
        self.incoming = Request()

    def on_url(self, target: bytes) -> None:
        assert self.incoming is not None
        self.incoming.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.incoming
        assert request is not None
        lower = name.lower()
        if request.method:
            return  # a trailer: dropped, as RFC 9110 6.5.1 allows where the message is put together anew
        if lower in OWN_FIELDS:
            request.own_field(lower, value)
        elif lower not in self.router.replaced_fields:
            request.field_lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        request, parser = self.incoming, self.parser
        assert request is not None
        request.method = parser.get_method()
        request.version = parser.get_http_version()
        if request.is_chunked and request.content_length is not None:
            request.is_refused = b"Content-Length with Transfer-Encoding"
        if request.connection:
            request.drop_named_by_connection()
        is_next = self.exchange is None and not self.waiting and not request.is_refused
        if request.expects_continue and is_next and self.router.why_unauthorized(request) is None:
            self.write(CONTINUE)

    def on_body(self, piece: bytes) -> None:
        request = self.incoming
        assert request is not None
        exchange = self.exchange
        if exchange is not None and exchange.request is request:
            exchange.more_body(piece)
            return
        request.body.append(piece)
        request.body_bytes += len(piece)
        if request.body_bytes > self.router.table.limits.kept_body_bytes:
            if exchange is None and not self.waiting:
                self._start(request)
            else:
                self.pause_reading()  # until its turn comes

    def on_message_complete(self) -> None:
        request, parser = self.incoming, self.parser
        assert request is not None
        request.is_complete = True
        request.keep_alive = parser.should_keep_alive()
        self.incoming = None
        self.head_bytes = 0
        exchange = self.exchange
        if exchange is None:
            self._start(request)
        elif exchange.request is request:
            exchange.body_ended()
        else:
            if self.waiting is None:
                self.waiting = deque()
            self.waiting.append(request)
            if len(self.waiting) >= MAX_PIPELINED:
                self.pause_reading()

    # --- requests and answers ---------------------------------------------------------------------------

    def wants_close(self, request: Request) -> bool:
        """Whether the connection should end with this request's answer."""
        return (
            not request.keep_alive
            or request.version != "1.1"
            or self.router.is_stopping
            or bool(self.refusal)
        )

    def _start(self, request: Request) -> None:
        router = self.router
        if request.is_refused:
            reason = request.is_refused.decode()
            self._refuse(400, f"ambiguous framing: {reason}", "bad_request")
            return
        exchange = self.exchange = Exchange(router, self, request)
        refused = router.why_unauthorized(request)
        if refused is not None:
            router.meter.reject("unauthorized")
            exchange.own_answer(401, refused, fields=b"WWW-Authenticate: Bearer\r\n")
        elif request.target.startswith(b"/router/") or request.path == b"/metrics":
            status, content_type, body = router.own_endpoint(request)
            self._answer_own(exchange, status, content_type, body)
        elif router.is_stopping:
            router.meter.reject("stopping")
            body = wire.error_body("the router is stopping", kind="server_error", code="stopping")
            exchange.own_answer(503, body, fields=b"Retry-After: 1\r\n")
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
        if self.closes or not exchange.request.is_complete:
            # An answer before the request's end: what follows on the connection would be misread.
            self.transport.close()
            return
        if self.waiting:
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
            self._start(self.waiting.popleft())
            if len(self.waiting or ()) < MAX_PIPELINED:
                self.resume_reading()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Say that the connection's bytes cannot be read any further, after the answers under way."""
        self.router.meter.reject(code)
        body = wire.error_body(message, kind="invalid_request_error", code=code)
        self.refusal = wire.answer(status, body, close=True)
        if self.exchange is None and not self.waiting:
            self.write(self.refusal)
            self.transport.close()

"""One request on its way: choose a backend, send, read the answer, and try elsewhere while nothing went out.

Answers pass as the bytes they came in; only their head is read, and as much framing as tells where they end.
Server-sent events are handed to `Stream`, which can survive its backend.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

from tandemn.router.request import HEAD_END
from tandemn.router.resume import Ask, Continuation, ask_for_ids, read_ask
from tandemn.router.routing import Fault, Step, after_fault
from tandemn.router.sse import ChunkDecoder, Garbled
from tandemn.router.stream import Stream
from tandemn.router.table import Engine
from tandemn.router.upstream import CONNECT_ERRORS, Upstream
from tandemn.router.wire import (
    MAX_ANSWER_HEAD_BYTES,
    AnswerHead,
    answer,
    answer_head,
    error_body,
    find_usage,
    rewrite_head,
)

if TYPE_CHECKING:
    from tandemn.router.downstream import Client, Incoming
    from tandemn.router.recovery import Recovery
    from tandemn.router.request import Request
    from tandemn.router.router import BackendRuntime, Router

#: Answers up to this size are held until they are whole, so that a backend lost half-way can be replaced.
HELD_ANSWER_BYTES: Final = 256 << 10
#: Bytes at an answer's end in which its usage is looked for.
TAIL_BYTES: Final = 64 << 10


class Exchange:
    """A request and what has become of it. Everything runs in protocol callbacks; no task of its own waits."""

    __slots__ = (
        "ask",
        "backend",
        "began_at",
        "body",
        "client",
        "connecting",
        "continuation",
        "decoder",
        "has_answer",
        "head",
        "held",
        "incoming",
        "left",
        "pending",
        "request",
        "router",
        "stream",
        "tried",
        "tries",
        "upstream",
    )

    def __init__(
        self, router: Router, client: Client, request: Request, body: bytes, incoming: Incoming | None
    ) -> None:
        self.router = router
        self.client = client
        self.request = request
        self.incoming = incoming
        """The body where it is passed on as it comes, and not kept."""
        self.ask: Ask | None = None
        self.backend: BackendRuntime | None = None
        self.began_at = monotonic()
        self.body = body
        self.connecting: asyncio.Task[None] | None = None
        self.continuation: Continuation | None = None
        self.decoder: ChunkDecoder | None = None
        self.has_answer = False
        """Whether bytes of the answer went out: from then on nothing can be tried elsewhere."""
        self.head: AnswerHead | None = None
        self.held: list[bytes] | None = None
        self.left = 0
        self.pending = b""
        self.stream: Stream | None = None
        self.tried: tuple[str, ...] = ()
        self.tries = 0
        self.upstream: Upstream | None = None

    # --- to the backend ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Send the request to the best backend, or refuse it."""
        if self.request.method == b"POST" and self.incoming is None:
            self.ask = read_ask(self.request.path, self.body)
        backend = self.router.choose((), self.began_at)
        if backend is None:
            self._refuse()
        else:
            self.attempt(backend, self.began_at)

    def _refuse(self) -> None:
        reason, status, message, wait_s = self.router.why_refused()
        self.router.meter.reject(reason)
        body = error_body(message, kind="rate_limit_error" if status == 429 else "server_error", code=reason)
        self.own_answer(status, body, fields=b"Retry-After: %d\r\n" % wait_s)

    def attempt(self, backend: BackendRuntime, now: float, *, is_fresh: bool = False) -> None:
        """Try there, on a pooled connection if there is one."""
        self.backend = backend
        self.tries += 1
        upstream = None if is_fresh else backend.pool.take(is_busy=backend.meter.inflight > 0)
        if upstream is not None:
            self._send(upstream)
        else:
            if self.incoming is not None:
                self.client.pause_reading()
            self.connecting = asyncio.get_running_loop().create_task(self._connect(backend))
        backend.begin(self, now)  # noted when the bytes are on their way

    async def _connect(self, backend: BackendRuntime) -> None:
        try:
            upstream = await backend.pool.open()
        except CONNECT_ERRORS as exc:
            self.connecting = None
            self.fault(Fault.REFUSED, f"no connection: {exc or type(exc).__name__}", is_sent=False)
            return
        except asyncio.CancelledError:
            return
        self.connecting = None
        self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        backend, request = self.backend, self.request
        assert backend is not None
        self.upstream = upstream
        upstream.feed = self._on_head
        upstream.lost = self._on_lost
        if self.incoming is not None:
            self._send_flowing(upstream, backend, self.incoming)
            return
        target, body = request.target, self.body
        if self.continuation is not None:
            target, body = self.continuation.path, self.continuation.body
        elif self.ask is not None and self.ask.wants_injection and backend.spec.engine is Engine.VLLM:
            body = ask_for_ids(body)
        if body or request.has_body:
            upstream.write(backend.wire(request, target, b"Content-Length: %d\r\n\r\n%b" % (len(body), body)))
        else:
            upstream.write(backend.wire(request, target, b"\r\n"))
        if self.client.is_paused:
            upstream.transport.pause_reading()

    def _send_flowing(self, upstream: Upstream, backend: BackendRuntime, incoming: Incoming) -> None:
        """Head and what has come of the body; the rest follows as it comes."""
        request = self.request
        upstream.paused = self._on_upstream_paused
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
        if not request.is_chunked:
            framing = b"Content-Length: %d\r\n\r\n" % (request.content_length or 0)
        upstream.write(backend.wire(request, request.target, framing))
        kept, incoming.body = incoming.body, []
        self.client.resume_reading()
        for piece in kept:
            self.more_body(piece)
        if incoming.is_complete:
            self.body_ended()

    def more_body(self, piece: bytes) -> None:
        """The next piece of a body that is not kept."""
        if self.upstream is None:
            assert self.incoming is not None
            self.incoming.body.append(piece)  # still connecting; the client is paused meanwhile
        elif self.request.is_chunked:
            self.upstream.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        else:
            self.upstream.write(piece)

    def body_ended(self) -> None:
        if self.upstream is not None and self.request.is_chunked:
            self.upstream.write(b"0\r\n\r\n")

    def _on_upstream_paused(self, is_paused: bool) -> None:  # noqa: FBT001 -- a protocol callback
        if is_paused:
            self.client.pause_reading()
        else:
            self.client.resume_reading()

    # --- from the backend -------------------------------------------------------------------------------

    def _on_head(self, data: bytes) -> None:
        if self.pending:
            data = self.pending + data
            self.pending = b""
        found = HEAD_END.search(data)
        if found is None:
            self.pending = data
            if len(data) > MAX_ANSWER_HEAD_BYTES or b"HTTP/1."[: len(data)] != data[:7]:
                self.fault(Fault.GARBAGE, "the answer is not HTTP", is_sent=True)
            return
        end = found.end()
        try:
            head = answer_head(data[:end])
        except Garbled as exc:
            self.fault(Fault.GARBAGE, str(exc), is_sent=True)
            return
        if head.status < 200:
            # 100 was answered by the router itself, others (103) may be dropped by an intermediary.
            if head.status == 101:
                self.fault(Fault.GARBAGE, "101 although no upgrade was asked for", is_sent=True)
            elif len(data) > end:
                self._on_head(data[end:])
            return
        self._answered(head, data)

    def _answered(self, head: AnswerHead, data: bytes) -> None:
        """The answer has begun with `data`, which begins with its head."""
        backend = self.backend
        assert backend is not None
        if head.status >= 500 or head.status == 429:
            fault = Fault.BUSY if head.status == 429 else Fault.ERROR_STATUS
            if fault is Fault.ERROR_STATUS and head.status != 501:
                backend.failed(f"HTTP {head.status}", monotonic())
            if self.fault(fault, f"HTTP {head.status}", is_sent=True, is_counted=True):
                return
        else:
            backend.answered(monotonic())
        backend.waiting.pop(self, None)
        self.head = head
        if self.recovery is not None:
            self.recovery.answered(head, data[len(head.head) :])
        elif head.is_stream and head.status == 200 and self.request.method != b"HEAD":
            self.has_answer = True
            self.stream = Stream(self, head)
            self.stream.open(data[len(head.head) :])
        else:
            self._begin_body(head, data)

    def _begin_body(self, head: AnswerHead, data: bytes) -> None:
        client, upstream = self.client, self.upstream
        assert upstream is not None
        is_bare = self.request.method == b"HEAD" or head.status in {204, 304}
        self._expect_body(head, is_bare=is_bare)
        out = self._shown_head(head)
        came = len(data) - len(head.head)
        if self.left == came and self.decoder is None:
            self.has_answer = True
            client.write(data if out is head.head else out + data[len(head.head) :])
            self.left = 0
            self._note_usage(data)
            self._finish(b"")
            return
        rest = data[len(head.head) :]
        upstream.feed = self._on_body
        if came < self.left <= HELD_ANSWER_BYTES and self.incoming is None and head.status == 200:
            self.held = [out]
        else:
            self.has_answer = True
            client.write(out)
        if self.left == 0 and self.decoder is None:
            self._finish(rest)
        elif rest:
            self._on_body(rest)

    def _expect_body(self, head: AnswerHead, *, is_bare: bool) -> None:
        """How long the body is: `left` bytes, -1 for until the connection closes, or as the decoder finds."""
        if is_bare:
            self.left = 0
        elif head.is_chunked:
            self.left = -1
            self.decoder = ChunkDecoder()
        elif head.length is None:
            self.left = -1
            self.client.closes = True
        else:
            self.left = head.length

    def _shown_head(self, head: AnswerHead) -> bytes:
        """The head as this client gets it: byte for byte where nothing speaks against it."""
        client = self.client
        if client.wants_close(self.request):
            client.closes = True
        if self.decoder is not None and self.request.version != "1.1":
            client.closes = True
            return rewrite_head(head, framing=b"", close=True)
        if head.is_clean and not client.closes:
            return head.head
        return rewrite_head(head, framing=None, close=client.closes)

    def _on_body(self, data: bytes) -> None:
        if self.decoder is not None:
            self._on_chunked(data)
            return
        if self.left < 0:
            self.client.write(data)
            return
        extra = data[self.left :]
        if extra:
            data = data[: self.left]
        self.left -= len(data)
        if self.held is not None:
            self.held.append(data)
            if self.left:
                return
            data = b"".join(self.held)
            self.held = None
            self.has_answer = True
        if self.head is not None and self.head.is_json:
            self.pending = (
                data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else self.pending[-TAIL_BYTES:] + data
            )
        self.client.write(data)
        if self.left == 0:
            self._note_usage(self.pending)
            self._finish(extra)

    def _on_chunked(self, data: bytes) -> None:
        decoder = self.decoder
        assert decoder is not None
        try:
            content = decoder.feed(data)
        except Garbled as exc:
            self._broken(f"garbled: {exc}")
            return
        extra = decoder.rest
        if self.request.version == "1.1":
            self.client.write(data[: len(data) - len(extra)] if extra else data)
        elif content:
            self.client.write(content)
        if decoder.is_ended:
            self._note_usage(content)
            self._finish(extra)

    def _note_usage(self, tail: bytes) -> None:
        head, backend = self.head, self.backend
        if head is not None and backend is not None and head.is_json and head.status == 200:
            usage = find_usage(tail)
            if usage is not None:
                backend.counts["prompt_tokens"] += usage[0]
                backend.counts["completion_tokens"] += usage[1]

    def _finish(self, extra: bytes) -> None:
        """The answer is complete."""
        head = self.head
        assert head is not None
        is_sent = self.incoming is None or self.incoming.is_complete
        self.release(reusable=head.keep_alive and not extra and is_sent)
        self.client.exchange_done(self)

    def release(self, *, reusable: bool) -> None:
        """The try is over: let go of the connection and of the place at the backend."""
        backend, upstream = self.backend, self.upstream
        self.backend = self.upstream = None
        now = monotonic()
        if backend is not None:
            backend.end(self, now)
        if upstream is not None:
            if reusable:
                upstream.give_back(now)
            else:
                upstream.drop()

    def _on_lost(self, upstream: Upstream, exc: Exception | None) -> None:
        """The backend closed its connection."""
        reason = f"connection lost: {exc}" if exc is not None else "connection closed"
        if self.stream is not None and self.head is not None:
            self.stream.lost(exc)
        elif self.recovery is not None:
            self.recovery.failed(reason, is_counted=False)
        elif self.has_answer:
            until_close = self.left < 0 and self.decoder is None and exc is None
            if until_close:
                self._finish(b"")
            else:
                self._broken(reason)
        else:
            is_stale = upstream.is_reused and not self.pending and self.held is None
            self.fault(Fault.STALE if is_stale else Fault.CLOSED, reason, is_sent=True)

    @property
    def recovery(self) -> Recovery | None:
        """Of the stream that this exchange goes on with elsewhere."""
        return None if self.stream is None else self.stream.recovery

    def note_tried(self, name: str) -> None:
        """A backend failed this request: others come first."""
        if name not in self.tried:
            self.tried = (*self.tried, name)

    # --- when it goes wrong -----------------------------------------------------------------------------

    def fault(self, fault: Fault, why: str, *, is_sent: bool, is_counted: bool = False) -> bool:
        """A try failed before its first byte went out: try again, or tell the client.

        Returns:
            False where the answer that came is to be passed on.
        """
        if self.recovery is not None:
            self.recovery.failed(why, is_counted=is_counted)
            return True
        backend = self.backend
        assert backend is not None
        tried = self.tried if backend.spec.name in self.tried else (*self.tried, backend.spec.name)
        now = monotonic()
        other = self.router.choose(tried, now)
        verdict = after_fault(
            fault,
            method=self.request.method,
            tries=self.tries,
            is_sent=is_sent,
            is_kept=self.incoming is None,
            has_other=other is not None,
        )
        if verdict.step is Step.PASS_ON:
            return False
        if fault is not Fault.STALE and not is_counted:
            backend.failed(why, now)
        self.release(reusable=False)
        self.held = None
        self.pending = b""
        self.decoder = None
        if verdict.step is Step.GIVE_UP:
            status = 504 if fault is Fault.SLOW else 502
            message = f"backend {backend.spec.name} failed ({why}); {verdict.reason}"
            self.own_answer(status, error_body(message, kind="server_error", code="backend_failed"))
            return True
        backend.counts["retries"] += 1
        if verdict.step is Step.ELSEWHERE and other is not None:
            self.tried = tried
            self.attempt(other, now)
        else:
            self.tries -= fault is Fault.STALE
            self.attempt(backend, now, is_fresh=True)
        return True

    def _broken(self, why: str) -> None:
        """Lost within an answer that is no stream: a truncated answer must look truncated."""
        if self.backend is not None:
            self.backend.failed(why, monotonic())
        self.release(reusable=False)
        self.client.abort()

    def own_answer(self, status: int, body: bytes, fields: bytes = b"") -> None:
        """End the exchange with an answer of the router's own."""
        if self.client.wants_close(self.request):
            self.client.closes = True
        is_head = self.request.method == b"HEAD"
        self.client.write(answer(status, body, fields=fields, close=self.client.closes, head_only=is_head))
        self.client.exchange_done(self)

    def cancel(self) -> None:
        """The client has gone: stop the generation."""
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if self.backend is not None:
            self.backend.counts["cancelled"] += 1
        if self.stream is not None:
            self.stream.cancelled()
        self.release(reusable=False)

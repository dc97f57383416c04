"""One streamed answer: whole events to the client, and on to another backend when its own is lost.

The usual event, one HTTP chunk that holds it whole, passes with a handful of operations: recognise it, keep a
reference, take token ids out, write. Everything unusual goes the slow way through decoder and cutter.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from bisect import bisect_left
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from tandemn.router.progress import Progress
from tandemn.router.resume import (
    Continuation,
    Finish,
    Refusal,
    continue_stream,
)
from tandemn.router.routing import MAX_RESUMES
from tandemn.router.seam import Seam, SeamMismatch, broken_events
from tandemn.router.sse import LAST_CHUNK, ChunkDecoder, EventCutter, Garbled, as_chunk, data_of, whole_chunk
from tandemn.router.table import Engine
from tandemn.router.wire import AnswerHead, find_usage, rewrite_head

if TYPE_CHECKING:
    from tandemn.router.exchange import Exchange

#: Kept bytes that are packed at once: about 70 events, 0.3 µs each.
PACK_BYTES: Final = 16 << 10
#: Shorter pieces are no events with text: `[DONE]`, comments, the last chunk.
MIN_EVENT_BYTES: Final = 32
#: Seconds between tries to continue one stream; a backend that restarts in place gets a few seconds.
RESUME_DELAYS_S: Final = (0.0, 0.0, 0.1, 0.3, 1.0, 2.0, 4.0)

_IDS: Final = re.compile(rb'"((?:prompt_)?token_ids)":\s?\[[^\]]*\]')
_HIDDEN: Final = rb'"\1":null'
_IDS_MARK: Final = b'"token_ids":['
_ERROR_EVENT: Final = b'data: {"error"'
_ABORTED: Final = b'"abort"'


class Stream:
    __slots__ = (
        "_itl",
        "can_resume",
        "clean",
        "cutter",
        "decoder",
        "events",
        "exchange",
        "hides_ids",
        "is_done",
        "kept",
        "kept_bytes",
        "last_at",
        "last_data",
        "left",
        "packed",
        "packed_bytes",
        "progress",
        "resumes",
        "seam",
        "timer",
        "tries",
        "why_not",
        "write",
    )

    def __init__(self, exchange: Exchange, head: AnswerHead) -> None:
        backend = exchange.backend
        assert backend is not None
        ask = exchange.ask
        self.exchange = exchange
        self.can_resume = ask is not None and ask.is_resumable and exchange.incoming is None
        # vLLM writes null where ids were not asked for: with null in their place nothing shows.
        is_asked = self.can_resume and ask is not None and not ask.names_ids
        self.hides_ids = is_asked and backend.spec.engine is Engine.VLLM
        self.decoder = ChunkDecoder() if head.is_chunked else None
        self.cutter = EventCutter()
        self.left = -1 if head.length is None else head.length
        self.clean = False
        """Whether the next byte begins a chunk and an event."""
        self.events = 0
        self.is_done = False
        self.kept: list[bytes] = []
        self.kept_bytes = 0
        self.last_at = 0.0
        self.packed: list[bytes] = []
        self.packed_bytes = 0
        self.last_data = b""
        self.progress: Progress | None = None
        self.resumes = 0
        self.seam: Seam | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.tries = 0
        self.why_not = "this kind of request cannot be resumed"
        self.write = exchange.client.write
        self._itl = backend.meter.itl

    def open(self, rest: bytes) -> None:
        """Pass on the head and what came with it."""
        exchange = self.exchange
        client, head, backend, upstream = exchange.client, exchange.head, exchange.backend, exchange.upstream
        assert head is not None
        assert backend is not None
        assert upstream is not None
        if exchange.request.version == "1.1":
            if client.wants_close(exchange.request):
                client.closes = True
            if head.is_chunked and head.is_clean and not client.closes:
                client.write(head.head)
            else:
                client.write(
                    rewrite_head(head, framing=b"Transfer-Encoding: chunked\r\n", close=client.closes)
                )
        else:
            client.closes = True
            client.write(rewrite_head(head, framing=b"", close=True))
        backend.counts["streams"] += 1
        exchange.router.streams.add(self)
        self.last_at = exchange.began_at
        upstream.feed = self.feed
        if rest or self.left == 0:
            self.feed(rest)

    # --- the usual way ----------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes of the answer, as they came."""
        now = monotonic()
        if self.clean:
            at = whole_chunk(data)
            if (
                at
                and len(data) > MIN_EVENT_BYTES
                and not data.startswith(_ERROR_EVENT, at)
                and _ABORTED not in data
            ):
                itl = self._itl
                gap = now - self.last_at
                itl.counts[bisect_left(itl.bounds, gap)] += 1
                itl.total_s += gap
                self.last_at = now
                self.last_data = data
                self.events += 1
                if self.can_resume:
                    self.kept.append(data)
                    self.kept_bytes += len(data)
                    if self.kept_bytes > PACK_BYTES:
                        self._pack()
                if self.hides_ids:
                    data = self._hide(data, at)
                self.write(data)
                return
        self._feed_slowly(data, now)

    def _hide(self, data: bytes, at: int) -> bytes:
        """The chunk without token ids; its content begins at `at`."""
        start = data.rfind(_IDS_MARK)
        if start < 0:
            return data
        if data.find(_IDS_MARK, at, start) >= 0:
            return as_chunk(_IDS.sub(_HIDDEN, data[at:-2]))
        stop = data.find(b"]", start) + 1
        # What replaces the list is `null`; the size line counts the content without the chunk's own CRLF.
        size = start + 14 - at + len(data) - stop
        return b"%x\r\n%bnull%b" % (size, data[at : start + 12], data[stop:])

    # --- the slow way -----------------------------------------------------------------------------------

    def _feed_slowly(self, data: bytes, now: float) -> None:
        try:
            is_ended, events = self._cut(data)
        except Garbled as exc:
            self.broken(f"garbled: {exc}")
            return
        if events and not self._deliver(events, now):
            return
        if is_ended:
            self._ended()

    def _cut(self, data: bytes) -> tuple[bool, bytes]:
        """Whole events in `data`, and whether the message ends with it."""
        decoder = self.decoder
        if decoder is not None:
            events = self.cutter.feed(decoder.feed(data))
            self.clean = decoder.is_between and not self.cutter.held and self._is_chunked_out()
            return decoder.is_ended, events
        if self.left >= 0:
            data = data[: self.left]
            self.left -= len(data)
        return self.left == 0, self.cutter.feed(data)

    def _is_chunked_out(self) -> bool:
        return self.exchange.request.version == "1.1" and self.seam is None

    def _deliver(self, events: bytes, now: float) -> bool:
        """Pass whole events on; False where they told that the backend is lost."""
        self._note_time(now)
        if self.seam is not None:
            return self._deliver_continued(events)
        if self.can_resume and (_ERROR_EVENT in events or _ABORTED in events):
            good, is_failed = _before_failure(events)
            if is_failed:
                if good:
                    self._pass(good)
                self.broken("the engine failed within the answer")
                return False
        self._pass(events)
        return True

    def _pass(self, events: bytes) -> None:
        self.events += 1
        if len(events) > MIN_EVENT_BYTES:
            self.last_data = events
        if b"data: [DONE]" in events:
            self.is_done = True
        if self.can_resume:
            self.kept.append(events)
            self.kept_bytes += len(events)
            if self.kept_bytes > PACK_BYTES:
                self._pack()
        self._out(_IDS.sub(_HIDDEN, events) if self.hides_ids else events)

    def _note_time(self, now: float) -> None:
        exchange = self.exchange
        if self.events == 0 and self.resumes == 0:
            if exchange.backend is not None:
                exchange.backend.meter.first_byte(now - exchange.began_at, now)
        elif self.last_at:
            self._itl.add(now - self.last_at)
        self.last_at = now

    def _out(self, events: bytes) -> None:
        if events:
            self.write(as_chunk(events) if self.exchange.request.version == "1.1" else events)

    def _pack(self) -> None:
        """Put what is kept away until it is needed: events resemble each other, so they shrink to a tenth."""
        packed = zlib.compress(b"".join(self.kept), 1)
        self.kept.clear()
        self.kept_bytes = 0
        self.packed.append(packed)
        self.packed_bytes += len(packed)
        router = self.exchange.router
        router.kept_bytes += len(packed)
        limits = router.table.limits
        if self.packed_bytes > limits.kept_stream_bytes or router.kept_bytes > limits.kept_total_bytes:
            self.can_resume = False
            self.why_not = "the answer is longer than what is kept"
            self._forget()

    def _unpack(self) -> Progress:
        """How far the stream has come, from what was kept since the last break."""
        progress = self.progress
        if progress is None:
            progress = self.progress = Progress()
        for packed in self.packed:
            progress.fold(zlib.decompress(packed))
        progress.fold(b"".join(self.kept))
        self._forget()
        return progress

    def _forget(self) -> None:
        self.exchange.router.kept_bytes -= self.packed_bytes
        self.packed_bytes = 0
        self.packed.clear()
        self.kept.clear()
        self.kept_bytes = 0

    # --- the end ----------------------------------------------------------------------------------------

    def _ended(self) -> None:
        """The backend says that its answer is complete."""
        if self.cutter.held and not self.can_resume:
            self._out(self.cutter.held)
        if self.can_resume and not self.is_done and self.exchange.request.path.startswith(b"/v1/"):
            # A proxy in between ended the message properly although its backend was lost.
            self.broken("the stream ended without [DONE]")
            return
        self._close(is_whole=True)

    def _close(self, *, is_whole: bool) -> None:
        exchange = self.exchange
        self._note_tokens()
        decoder, head = self.decoder, exchange.head
        is_clear = (decoder.is_ended and not decoder.rest) if decoder is not None else self.left == 0
        exchange.release(reusable=is_whole and is_clear and head is not None and head.keep_alive)
        if exchange.request.version == "1.1":
            self.write(LAST_CHUNK)
        self._leave()
        exchange.client.exchange_done(exchange)

    def _leave(self) -> None:
        self.exchange.router.streams.discard(self)
        self._forget()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _note_tokens(self) -> None:
        backend = self.exchange.backend
        if backend is None:
            return
        usage = find_usage(self.last_data)
        if usage is None:
            # One event is about one token; the role, finish and [DONE] events are not.
            backend.counts["estimated_completion_tokens"] += max(0, self.events - 2)
        else:
            backend.counts["prompt_tokens"] += usage[0]
            backend.counts["completion_tokens"] += usage[1]

    def cancelled(self) -> None:
        """The client has gone."""
        self._note_tokens()
        self._leave()

    # --- when the backend is lost -----------------------------------------------------------------------

    def lost(self, exc: Exception | None) -> None:
        """The connection is gone before the message was complete."""
        is_until_close = self.decoder is None and self.left < 0
        if self.is_done or (is_until_close and exc is None and not self.can_resume):
            self._close(is_whole=False)
        else:
            self.broken(f"connection lost: {exc}" if exc is not None else "connection closed")

    def broken(self, why: str) -> None:
        """The backend is lost within the answer: continue elsewhere, or end with an error event."""
        exchange = self.exchange
        backend = exchange.backend
        if backend is not None:
            backend.failed(why, monotonic())
            if backend.spec.name not in exchange.tried:
                exchange.tried = (*exchange.tried, backend.spec.name)
        self._note_tokens()
        exchange.release(reusable=False)
        self.events = 2
        self.last_data = b""
        self.clean = False
        if self.is_done:
            self._close(is_whole=False)
            return
        self.tries = 0
        self.resumes += 1
        if not self.can_resume:
            self._give_up(f"{self.why_not} ({why})", backend.spec.name if backend else "")
        elif self.resumes > MAX_RESUMES:
            self._give_up(f"it broke {self.resumes} times", backend.spec.name if backend else "")
        else:
            self._unpack()
            self._resume()

    def _give_up(self, reason: str, name: str = "") -> None:
        meters = self.exchange.router.meter.backends
        if name in meters:
            meters[name].counts["resume_failures"] += 1
        self._out(broken_events(reason))
        self._close(is_whole=False)

    def _resume(self) -> None:
        self.timer = None
        exchange = self.exchange
        router = exchange.router
        if self.tries >= len(RESUME_DELAYS_S):
            self._give_up(f"{self.tries} tries to continue it failed", exchange.tried[-1])
            return
        self.tries += 1
        now = monotonic()
        backend = router.choose(exchange.tried, now) or router.choose((), now)
        if backend is None:
            self._resume_later()
            return
        if self.progress is None:
            self.progress = Progress()
        spec = backend.spec
        step = continue_stream(
            exchange.request.path, exchange.body, self.progress, spec.engine, spec.max_model_len
        )
        match step:
            case Continuation():
                ask = exchange.ask
                assert ask is not None
                exchange.continuation = step
                exchange.head = None
                self.seam = Seam(step, self.progress, ask.is_chat, shows_ids=ask.wants_ids)
                exchange.attempt(backend, now, is_fresh=True)
            case Finish():
                self._out(step.events)
                self._close(is_whole=False)
            case Refusal():
                self._give_up(step.reason, exchange.tried[-1] if exchange.tried else "")

    def _resume_later(self) -> None:
        delay = RESUME_DELAYS_S[min(self.tries, len(RESUME_DELAYS_S) - 1)]
        self.timer = asyncio.get_running_loop().call_later(delay, self._resume)

    def continuation_failed(self, why: str, *, is_counted: bool) -> None:
        """The try to continue got no answer."""
        exchange = self.exchange
        backend = exchange.backend
        if backend is not None:
            if not is_counted:
                backend.failed(why, monotonic())
            if backend.spec.name not in exchange.tried:
                exchange.tried = (*exchange.tried, backend.spec.name)
        exchange.release(reusable=False)
        exchange.pending = b""
        self._resume_later()

    def continued(self, head: AnswerHead, rest: bytes) -> None:
        """The continuation is answered."""
        exchange = self.exchange
        backend, upstream = exchange.backend, exchange.upstream
        assert backend is not None
        assert upstream is not None
        if head.status != 200 or not head.is_stream:
            exchange.release(reusable=False)
            self._give_up(f"backend {backend.spec.name} refused the continuation with HTTP {head.status}")
            return
        broken = exchange.tried[-1] if exchange.tried else backend.spec.name
        exchange.router.meter.backends[broken].counts["resumes"] += 1
        exchange.tried = ()
        backend.counts["streams"] += 1
        self._itl = backend.meter.itl
        self.last_at = 0.0
        self.decoder = ChunkDecoder() if head.is_chunked else None
        self.cutter = EventCutter()
        self.left = -1 if head.length is None else head.length
        upstream.feed = self.feed
        if rest:
            self.feed(rest)

    def _deliver_continued(self, events: bytes) -> bool:
        seam = self.seam
        assert seam is not None
        out: list[bytes] = []
        for data in data_of(events):
            if data.startswith(b'{"error"') or _ABORTED in data:
                self._out(b"".join(out))
                self.broken("the engine failed within the continuation")
                return False
            try:
                out.append(seam.translate(data))
            except (SeamMismatch, msgspec.DecodeError, ValueError) as exc:
                self._out(b"".join(out))
                self.exchange.release(reusable=False)
                self._give_up(str(exc))
                return False
        self.events += len(out)
        if len(events) > MIN_EVENT_BYTES:
            self.last_data = events  # as the backend told it: its own tokens only
        self.is_done = seam.progress.is_done
        if seam.progress.size > self.exchange.router.table.limits.kept_stream_bytes:
            self.can_resume = False
            self.why_not = "the answer is longer than what is kept"
        self._out(b"".join(out))
        return True


def _before_failure(events: bytes) -> tuple[bytes, bool]:
    """The events before one that tells of a failed engine, and whether there is such a one."""
    at = 0
    while at < len(events):
        end = events.find(b"\n\n", at)
        end = len(events) if end < 0 else end + 2
        event = events[at:end]
        if event.startswith(_ERROR_EVENT):
            if not _is_clients_fault(event):
                return events[:at], True
        elif b'"finish_reason":"abort"' in event or b'"finish_reason": "abort"' in event:
            return events[:at], True
        at = end
    return events, False


def _is_clients_fault(event: bytes) -> bool:
    found = re.search(rb'"code":\s*(\d{3})\b', event)
    return found is not None and 400 <= int(found[1]) < 500

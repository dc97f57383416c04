"""One streamed answer: whole events to the client, and on to another backend when its own is lost.

The usual event, one HTTP chunk that holds it whole and says that the answer goes on, passes with a handful of
operations: recognise it, keep a reference, take token ids out, write. Everything unusual goes the slow way
through decoder and cutter.
"""

from __future__ import annotations

import asyncio
import re
import zlib
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
from tandemn.router.sse import (
    CHUNK_BEGINS,
    EVENT_CHUNK_END,
    LAST_CHUNK,
    MAX_QUICK_BYTES,
    NEWLINE,
    SIZE_LINES,
    ChunkDecoder,
    EventCutter,
    Garbled,
    as_chunk,
    chunk_end,
    data_of,
)
from tandemn.router.table import Engine
from tandemn.router.wire import AnswerHead, find_usage, rewrite_head

if TYPE_CHECKING:
    from tandemn.router.exchange import Exchange

#: Reads after which what is kept of a stream is joined, and bytes after which it is.
PACK_READS: Final = 64
PACK_BYTES: Final = 16 << 10
#: Kept bytes of a stream, and of all, beyond which more is compressed too. It costs as much as everything else that
#: is done for an event, and most answers are over before.
RAW_STREAM_BYTES: Final = 128 << 10
RAW_TOTAL_BYTES: Final = 64 << 20
#: Of so many gaps between reads one is timed: a clock for every event would cost a tenth of it.
READS_PER_GAP: Final = 16
#: Shorter pieces are no events with text: `[DONE]`, comments, the last chunk.
MIN_EVENT_BYTES: Final = 32
#: Events of an answer that bring no token: the one with the role and `[DONE]`.
EVENTS_WITHOUT_TOKEN: Final = 2
#: Seconds between tries to continue one stream; a backend that restarts in place gets a few seconds.
RESUME_DELAYS_S: Final = (0.0, 0.0, 0.1, 0.3, 1.0, 2.0, 4.0)

_IDS: Final = re.compile(rb'"((?:prompt_)?token_ids)":\s?\[[^\]]*\]')
_HIDDEN: Final = rb'"\1":null'
# Between an event's text and its token ids where the answer goes on. Quotes within a text are escaped, so a text
# cannot hold it.
_GOES_ON_WITH_IDS: Final = re.compile(rb'"finish_reason":\s?null,(?:"\w+":null,)*"token_ids":(?=\[)')
_GOES_ON: Final = re.compile(rb'"finish_reason":\s?null')
#: Found nowhere.
_NOWHERE: Final = b"\r\n\r\n\r\n"
_ERROR_EVENT: Final = b'data: {"error"'
_ABORTED: Final = b'"abort"'


class Stream:
    __slots__ = (
        "_events",
        "_gap_began",
        "_itl",
        "_look_at",
        "_mark",
        "_rest",
        "_seen_at_sweep",
        "_swept_at",
        "can_resume",
        "cutter",
        "decoder",
        "exchange",
        "hides_ids",
        "is_clean",
        "is_done",
        "kept",
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
        self.is_clean = False
        """Whether the next byte begins a chunk and an event, and both pass as they are."""
        self.is_done = False
        self.kept: list[bytes] = []
        """What came since it was packed last, read by read."""
        self.packed: list[tuple[bool, bytes]] = []
        """What was kept before: whether it is compressed, and the bytes."""
        self.packed_bytes = 0
        self.last_data = b""
        self.progress: Progress | None = None
        self.resumes = 0
        self.seam: Seam | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.tries = 0
        self.why_not = "this kind of request cannot be resumed"
        self.write = exchange.client.write
        self._events = 0
        """Events that came, but for one a read of `kept`."""
        self._gap_began = 0.0
        self._itl = backend.meter.itl
        self._look_at = 1
        """How many reads are kept when `_look` is due."""
        self._mark = _NOWHERE if self.can_resume else b"{"
        """What an event has in it that may pass the usual way; learned from the first one that has it."""
        self._rest = b""
        """What followed the ids in the last event."""
        self._seen_at_sweep = -1
        self._swept_at = 0.0

    @property
    def events(self) -> int:
        """Events that came from the backend."""
        return self._events + len(self.kept)

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
        upstream.feed = self._feed_otherwise
        if rest or self.left == 0:
            self._feed_otherwise(rest)

    # --- the usual way ----------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes of the answer, where the next one begins a chunk and an event: nearly always one of each."""
        event = self._without_ids(data) if self.hides_ids else self._as_it_is(data)
        if event:
            write = self.write  # a local: calling a slot directly is slower
            write(event)
        else:
            self._feed_otherwise(data)

    # What these two do is done for every event, and chosen by the clock: of the ways to look into bytes, those
    # with a start argument, `in` and `count` are several times as slow.

    def _without_ids(self, chunk: bytes) -> bytes:
        """Keep the event and return its chunk with null for the ids; nothing where it is an unusual one."""
        size = len(chunk)
        if size >= MAX_QUICK_BYTES:
            return b""
        line = CHUNK_BEGINS[size]
        before, _, after = chunk.rpartition(b"[")
        if not (chunk.startswith(line) and before.endswith(self._mark)):
            return b""
        shown = before[len(line) :]
        rest = after.partition(b"]")[2]
        if NEWLINE in shown or (rest != self._rest and not self._is_rest(rest)):
            return b""
        kept = self.kept
        kept.append(chunk)
        if len(kept) == self._look_at:
            self._look()
        # The size line counts the content, not the CRLF behind it.
        return b"".join((SIZE_LINES[len(shown) + len(rest) + 2], shown, b"null", rest))

    def _is_rest(self, rest: bytes) -> bool:
        """Whether an event and its chunk end with these bytes; most often they are those of the event before."""
        if not rest.endswith(EVENT_CHUNK_END) or rest.count(b"\n") != 3:
            return False
        self._rest = rest
        return True

    def _as_it_is(self, chunk: bytes) -> bytes:
        """Keep the event and return its chunk; nothing where it is an unusual one."""
        size = len(chunk)
        if (
            size >= MAX_QUICK_BYTES
            or not (chunk.startswith(CHUNK_BEGINS[size]) and chunk.endswith(EVENT_CHUNK_END))
            or chunk.find(self._mark) < 0
            or (self.can_resume and chunk.count(b"\n") != 4)
        ):
            return b""
        kept = self.kept
        kept.append(chunk)
        if len(kept) == self._look_at:
            self._look()
        return chunk

    def _look(self) -> None:
        """Now and then: time the gap between two reads, and pack what is kept."""
        reads = len(self.kept)
        now = monotonic()
        if not self._gap_began:
            self._gap_began = now
            self._look_at = reads + 1
            return
        self._itl.add(now - self._gap_began)
        self._gap_began = 0.0
        if reads >= PACK_READS:
            self._pack()
            reads = 0
        self._look_at = reads + READS_PER_GAP - 1

    # --- the slow way -----------------------------------------------------------------------------------

    def _feed_otherwise(self, data: bytes) -> None:
        """Bytes of the answer, from anywhere in it."""
        if self.is_clean:
            data = self._feed_chunks(data)
            if not data:
                return
        upstream = self.exchange.upstream
        self._feed_slowly(data, monotonic())
        if upstream is not None and upstream is self.exchange.upstream:
            upstream.feed = self.feed if self.is_clean else self._feed_otherwise

    def _feed_chunks(self, data: bytes) -> bytes:
        """Pass on the usual events at the beginning of a read that holds several; what follows them."""
        out: list[bytes] = []
        at = 0
        take = self._without_ids if self.hides_ids else self._as_it_is
        while end := chunk_end(data, at):
            event = take(data[at:end])
            if not event:
                break
            out.append(event)
            at = end
        if out:
            self.write(b"".join(out))
        return data[at:]

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
            self.is_clean = decoder.is_between and not self.cutter.held and self._is_chunked_out()
            return decoder.is_ended, events
        if self.left >= 0:
            data = data[: self.left]
            self.left -= len(data)
        return self.left == 0, self.cutter.feed(data)

    def _is_chunked_out(self) -> bool:
        return self.exchange.request.version == "1.1" and self.seam is None

    def _deliver(self, events: bytes, now: float) -> bool:
        """Pass whole events on; False where they told that the backend is lost."""
        self._note_first(now)
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
        if b"data: [DONE]" in events:
            self.is_done = True
        if self.can_resume:
            goes_on = (_GOES_ON_WITH_IDS if self.hides_ids else _GOES_ON).search(events)
            if goes_on is not None:
                self._mark = goes_on[0]
        self.kept.append(events)
        self._events += events.count(b"\n\n") - 1
        if len(events) > PACK_BYTES:
            self._pack()
        elif len(self.kept) >= self._look_at:
            self._look()
        self._out(_IDS.sub(_HIDDEN, events) if self.hides_ids else events)

    def _note_first(self, now: float) -> None:
        exchange = self.exchange
        if self.events == 0 and self.resumes == 0 and exchange.backend is not None:
            exchange.backend.meter.first_byte(now - exchange.began_at, now)

    def _out(self, events: bytes) -> None:
        if events:
            self.write(as_chunk(events) if self.exchange.request.version == "1.1" else events)

    def _pack(self) -> None:
        """Put what is kept away until it is needed."""
        kept, self.kept = self.kept, []
        self._events += len(kept)
        self.last_data = _last_event(kept) or self.last_data
        if not self.can_resume:
            return
        router = self.exchange.router
        block = b"".join(kept)
        is_packed = self.packed_bytes > RAW_STREAM_BYTES or router.kept_bytes > RAW_TOTAL_BYTES
        if is_packed:
            block = zlib.compress(block, 1)  # events resemble each other: a tenth of it remains
        self.packed.append((is_packed, block))
        self.packed_bytes += len(block)
        router.kept_bytes += len(block)
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
        for is_packed, block in self.packed:
            progress.fold(zlib.decompress(block) if is_packed else block)
        progress.fold(b"".join(self.kept))
        self._forget()
        return progress

    def _forget(self) -> None:
        self.exchange.router.kept_bytes -= self.packed_bytes
        self.packed_bytes = 0
        self.packed.clear()
        self.kept.clear()

    def silent_s(self, now: float) -> float:
        """Seconds for which the backend has said nothing although it could; as exact as calls are frequent."""
        events = self.events
        if events != self._seen_at_sweep or self.exchange.client.is_paused or self.exchange.head is None:
            self._seen_at_sweep = events
            self._swept_at = now
        return now - self._swept_at

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
        usage = find_usage(_last_event(self.kept) or self.last_data)
        if usage is None:
            # One event is about one token.
            backend.counts["estimated_completion_tokens"] += max(0, self.events - EVENTS_WITHOUT_TOKEN)
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
        self.is_clean = False
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
            # From here on only what the next backend says is counted; its answer begins without a role.
            self._events = EVENTS_WITHOUT_TOKEN
            self.last_data = b""
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
        self._seen_at_sweep = -1
        self.decoder = ChunkDecoder() if head.is_chunked else None
        self.cutter = EventCutter()
        self.left = -1 if head.length is None else head.length
        upstream.feed = self._feed_otherwise
        if rest:
            self._feed_otherwise(rest)

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
        self._events += len(out)
        if len(events) > MIN_EVENT_BYTES:
            self.last_data = events  # as the backend told it: its own tokens only
        self.is_done = seam.progress.is_done
        if seam.progress.size > self.exchange.router.table.limits.kept_stream_bytes:
            self.can_resume = False
            self.why_not = "the answer is longer than what is kept"
        self._out(b"".join(out))
        return True


def _last_event(pieces: list[bytes]) -> bytes:
    """The last that is an event with text; nothing where there is none."""
    return next((piece for piece in reversed(pieces) if len(piece) > MIN_EVENT_BYTES), b"")


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

"""One streamed answer: whole events to the client, and on to another backend when its own is lost.

The usual event, one HTTP chunk that holds it whole and says that the answer goes on, passes with a handful of
operations: recognise it, keep a reference, take token ids out, write. Everything unusual goes the slow way
through decoder and cutter.
"""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from tandemn.router.kept import Kept
from tandemn.router.recovery import Recovery
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
)
from tandemn.router.table import Engine
from tandemn.router.wire import AnswerHead, find_usage, rewrite_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tandemn.router.exchange import Exchange

#: Usual events that are collected before they are kept together.
COLLECTED_EVENTS: Final = 64
#: Of so many gaps between reads one is timed: a clock for every event would cost a tenth of it.
READS_PER_GAP: Final = 16
#: From so many streams on, a next event waits until all that came with it was read: below, that costs more than it helps.
MANY_STREAMS: Final = 16
#: Shorter pieces are no events with text: `[DONE]`, comments, the last chunk.
MIN_EVENT_BYTES: Final = 32
#: Events of an answer that bring no token: the one with the role and `[DONE]`.
EVENTS_WITHOUT_TOKEN: Final = 2

_IDS: Final = re.compile(rb'"((?:prompt_)?token_ids)":\s?\[[^\]]*\]')
_HIDDEN: Final = rb'"\1":null'
# An event that goes on: its beginning up to the text, and what stands before its token ids. Quotes within a text
# are escaped, so no text can look like this.
_GOES_ON_WITH_IDS: Final = re.compile(
    rb'(data: [^\n]*?"(?:content|text)":)"[^\n]*?("finish_reason":null,(?:"\w+":null,)*"token_ids":)\[[^\]\n]*\]([^\n]*\n\n)'
)
_GOES_ON: Final = re.compile(rb'"finish_reason":\s?null')
#: So much before the text is compared.
_KEY_BYTES: Final = 10
#: Found nowhere.
_NOWHERE: Final = b"\r\n\r\n\r\n"
_ERROR_EVENT: Final = b'data: {"error"'
_ABORTED: Final = b'"abort"'


class Shape(NamedTuple):
    """How the usual events of a stream look, so that one can be recognised by a few comparisons."""

    before_ids: bytes
    before_text: bytes
    """The last bytes before the text."""
    before_text_at: int
    text_at: int
    end: bytes
    """What follows the ids, to the end of the chunk."""


_UNKNOWN: Final = Shape(_NOWHERE, b"", 0, 0, b"")


class Stream:
    __slots__ = (
        "_beginning",
        "_collected",
        "_events",
        "_gap_began",
        "_goes_on",
        "_itl",
        "_look_at",
        "_seen_at_sweep",
        "_shape",
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
        "recovery",
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
        self._expect(head)
        self.is_clean = False
        """Whether the next byte begins a chunk and an event, and both pass as they are."""
        self.is_done = False
        self.kept = Kept(exchange.router.kept)
        self.last_data = b""
        self.recovery: Recovery | None = None
        """Once its backend was lost."""
        self.why_not = "this kind of request cannot be resumed"
        self.write = exchange.client.write
        self._beginning = b""
        """Of the events that are collected: they are only what follows it."""
        self._collected: list[bytes] = []
        self._events = 0
        """Events that came, but for those that are collected."""
        self._gap_began = 0.0
        self._goes_on = _NOWHERE if self.can_resume else b"{"
        """What an event has that may pass as it is: it is neither the last nor an error."""
        self._itl = backend.meter.itl
        self._look_at = READS_PER_GAP
        """How many events are collected when `_look` is due."""
        self._seen_at_sweep = -1
        self._shape = _UNKNOWN
        self._swept_at = 0.0

    def _expect(self, head: AnswerHead) -> None:
        self.decoder = ChunkDecoder() if head.is_chunked else None
        self.cutter = EventCutter()
        self.left = -1 if head.length is None else head.length

    @property
    def events(self) -> int:
        """Events that came from the backend."""
        return self._events + len(self._collected)

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

    # What these two do is done for every event, and chosen by the clock: of the ways to look into bytes, those
    # with a start argument, `in` and `count` are several times as slow, and a call costs as much as a look.

    def _hide_ids(self, chunk: bytes) -> None:
        """Pass on what begins a chunk and an event, with null for the ids: nearly always one of each."""
        size = len(chunk)
        if size < MAX_QUICK_BYTES:
            before_ids, before_text, before_text_at, text_at, end = self._shape
            line = CHUNK_BEGINS[size]
            before, _, after = chunk.rpartition(b"[")
            shown = before[len(line) :]
            rest = after.partition(b"]")[2]
            if (
                chunk.startswith(line)
                and before.endswith(before_ids)
                and shown[before_text_at:text_at] == before_text
                and NEWLINE not in shown
                and (rest == end or _is_end(rest))
            ):
                collected = self._collected
                collected.append(chunk[len(line) + text_at : -len(EVENT_CHUNK_END)])
                if len(collected) == self._look_at:
                    self._look()
                write = self.write  # a local: calling a slot directly is slower
                # The size line counts the content, not the CRLF behind it.
                write(b"".join((SIZE_LINES[len(shown) + len(rest) + 2], shown, b"null", rest)))
                return
        self._feed_otherwise(chunk)

    def _pass_as_it_is(self, chunk: bytes) -> None:
        """Pass on what begins a chunk and an event: nearly always one of each."""
        size = len(chunk)
        if (
            size < MAX_QUICK_BYTES
            and chunk.startswith(CHUNK_BEGINS[size])
            and chunk.endswith(EVENT_CHUNK_END)
            and chunk.find(self._goes_on) >= 0
            and (not self.can_resume or chunk.count(b"\n") == 4)
        ):
            collected = self._collected
            collected.append(chunk)
            if len(collected) == self._look_at:
                self._look()
            write = self.write
            write(chunk)
        else:
            self._feed_otherwise(chunk)

    def _look(self) -> None:
        """Now and then: time the gap between two reads, and keep what is collected."""
        count = len(self._collected)
        self._time_gap(monotonic())
        if self._gap_began:
            self._look_at = count + 1
        elif count < COLLECTED_EVENTS:
            self._look_at = count + READS_PER_GAP - 1
        else:
            self._keep_collected()

    def _time_gap(self, now: float) -> None:
        if self._gap_began:
            self._itl.add(now - self._gap_began)
            self._gap_began = 0.0
        else:
            self._gap_began = now

    # --- the slow way -----------------------------------------------------------------------------------

    def _feed_otherwise(self, data: bytes) -> None:
        """Bytes of the answer, from anywhere in it."""
        upstream = self.exchange.upstream
        at = self._feed_chunks(data) if self.is_clean else 0
        if at < len(data) and upstream is self.exchange.upstream:
            self._feed_slowly(data[at:], monotonic())
        if upstream is not None and upstream is self.exchange.upstream:
            upstream.feed = self._usual() if self.is_clean else self._feed_otherwise
            if len(self.exchange.router.streams) >= MANY_STREAMS:
                upstream.is_patient = True  # to its end: what came later must not pass what waits

    def _usual(self) -> Callable[[bytes], None]:
        return self._hide_ids if self.hides_ids else self._pass_as_it_is

    def _feed_chunks(self, data: bytes) -> int:
        """Pass on the chunks of a read that holds several, one by one while that goes; where what is left begins."""
        upstream, feed, at = self.exchange.upstream, self._usual(), 0
        while (end := chunk_end(data, at)) and end - at < len(data):
            feed(data[at:end])
            at = end
            if not self.is_clean or upstream is not self.exchange.upstream:
                break
        return at

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
        return self.exchange.request.version == "1.1" and self.recovery is None

    def _deliver(self, events: bytes, now: float) -> bool:
        """Pass whole events on; False where they told that the backend is lost."""
        if self.recovery is not None:
            return self._deliver_continued(self.recovery, events)
        self._note_first(now)
        if self.can_resume and (_ERROR_EVENT in events or _ABORTED in events):
            good, is_failed = _before_failure(events)
            if is_failed:
                if good:
                    self._pass(good)
                self.broken("the engine failed within the answer")
                return False
        self._pass(events)
        return True

    def _deliver_continued(self, recovery: Recovery, events: bytes) -> bool:
        if len(events) > MIN_EVENT_BYTES:
            self.last_data = events  # as the backend told it: its own tokens only
        self._events += events.count(b"\n\n")
        return recovery.deliver(events)

    def _pass(self, events: bytes) -> None:
        self.out(_IDS.sub(_HIDDEN, events) if self.hides_ids else events)
        self._keep_collected()
        self._learn(events)
        if b"data: [DONE]" in events:
            self.is_done = True
        if len(events) > MIN_EVENT_BYTES:
            self.last_data = events
        if self._gap_began or self._events % READS_PER_GAP == 1:
            self._time_gap(monotonic())
        self._events += events.count(b"\n\n")
        self._keep(events)

    def _learn(self, events: bytes) -> None:
        """See how the events look that go on: those that follow can pass the usual way."""
        if self.hides_ids:
            found = _GOES_ON_WITH_IDS.search(events)
            if found is not None:
                self._beginning, text_at = found[1], len(found[1])
                key = found[1][-_KEY_BYTES:]
                shape = Shape(found[2], key, text_at - len(key), text_at, found[3] + b"\r\n")
                self._shape = self.exchange.router.same_shape(shape)
        elif self.can_resume:
            found = _GOES_ON.search(events)
            if found is not None:
                self._goes_on = found[0]

    def _note_first(self, now: float) -> None:
        exchange = self.exchange
        if self.events == 0 and exchange.backend is not None:
            exchange.backend.meter.first_byte(now - exchange.began_at, now)

    def out(self, events: bytes) -> None:
        """Write whole events as they are."""
        if events:
            self.write(as_chunk(events) if self.exchange.request.version == "1.1" else events)

    def _keep_collected(self) -> None:
        collected = self._collected
        if not collected:
            return
        self._collected = []
        self._events += len(collected)
        self._look_at = READS_PER_GAP
        self.last_data = collected[-1]
        if self.hides_ids:
            self._keep(b"\n".join(collected), self._beginning)
        else:
            self._keep(b"".join(collected))

    def _keep(self, content: bytes, beginning: bytes = b"") -> None:
        if not self.can_resume:
            return
        kept, router = self.kept, self.exchange.router
        kept.add(content, beginning)
        limits = router.table.limits
        if kept.size > limits.kept_stream_bytes or router.kept.size > limits.kept_total_bytes:
            self.stop_keeping()

    def stop_keeping(self) -> None:
        """The answer is too long: if it breaks from here on, it ends."""
        self.can_resume = False
        self.why_not = "the answer is longer than what is kept"
        self.kept.forget()

    def take_kept(self) -> Iterator[bytes]:
        """What was said since the last break, for once; from here on only the next backend's answer is counted."""
        self._keep_collected()
        yield from self.kept.events()
        self.kept.forget()
        self._events = EVENTS_WITHOUT_TOKEN  # a continuation has no event with the role
        self.last_data = b""

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
            self.out(self.cutter.held)
        if self.can_resume and not self.is_done and self.exchange.request.path.startswith(b"/v1/"):
            # A proxy in between ended the message properly although its backend was lost.
            self.broken("the stream ended without [DONE]")
            return
        self.close(is_whole=True)

    def close(self, *, is_whole: bool) -> None:
        """End the client's message; `is_whole`: the backend's has ended too, and in order."""
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
        self.exchange.stream = None  # they refer to each other: no cycle may be left to the collector
        self.kept.forget()
        if self.recovery is not None:
            self.recovery.end()
            self.recovery = None

    def _note_tokens(self) -> None:
        backend = self.exchange.backend
        if backend is None:
            return
        self._keep_collected()
        usage = find_usage(self.last_data)
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

    def begin_again(self, head: AnswerHead, rest: bytes) -> None:
        """Another backend goes on: its answer has this head and begins with these bytes."""
        exchange = self.exchange
        backend, upstream = exchange.backend, exchange.upstream
        assert backend is not None
        assert upstream is not None
        backend.counts["streams"] += 1
        self._seen_at_sweep = -1
        self._expect(head)
        upstream.feed = self._feed_otherwise
        if rest:
            self._feed_otherwise(rest)

    def lost(self, exc: Exception | None) -> None:
        """The connection is gone before the message was complete."""
        is_until_close = self.decoder is None and self.left < 0
        if self.is_done or (is_until_close and exc is None and not self.can_resume):
            self.close(is_whole=False)
        else:
            self.broken(f"connection lost: {exc}" if exc is not None else "connection closed")

    def broken(self, why: str) -> None:
        """The backend is lost within the answer: continue elsewhere, or end with an error event."""
        exchange = self.exchange
        backend = exchange.backend
        assert backend is not None, "only an answer under way breaks"
        backend.failed(why, monotonic())
        exchange.note_tried(backend.spec.name)
        self._note_tokens()
        exchange.release(reusable=False)
        self.is_clean = False
        if self.is_done:
            self.close(is_whole=False)
            return
        if self.recovery is None:
            self.recovery = Recovery(self)
        self.recovery.broke(why, backend.spec.name)


def _is_end(rest: bytes) -> bool:
    """Whether an event, and the chunk that holds it alone, ends with these bytes."""
    return rest.endswith(EVENT_CHUNK_END) and rest.count(b"\n") == 3


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

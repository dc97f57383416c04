"""A stream's events come out the same however its bytes arrive; the wire on both sides is a list of bytes."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.router_wire import Wires

from tandemn.router.exchange import Exchange
from tandemn.router.progress import Progress
from tandemn.router.sse import ChunkDecoder
from tandemn.router.stream import Stream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
IDS = re.compile(rb'"((?:prompt_)?token_ids)":\s?\[[^\]]*\]')


class Rig(Wires):
    """A client whose streaming request is on its way."""

    def __init__(self, path="/v1/chat/completions", engine="vllm", **body):
        super().__init__(engine=engine)
        content = json.dumps({"stream": True, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        self.client.data_received(head.encode() + content)

    def feed(self, *reads):
        for data in reads:
            self.upstream.data_received(data)

    def answer(self):
        """What the client got: the head as it came, then every event in chunks that hold whole ones."""
        head, _, rest = self.wire.content.partition(b"\r\n\r\n")
        assert head + b"\r\n\r\n" == HEAD
        for written in self.wire.written[1:]:
            got = ChunkDecoder().feed(written)
            assert got.endswith((b"\n\n", b"\n\r\n")) or written == b"0\r\n\r\n"
        return ChunkDecoder().feed(rest)


def chunk(content):
    return b"%x\r\n%b\r\n" % (len(content), content)


def chat(text, ids, finish=None, **more):
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "choices": [{**choice, "token_ids": ids}], **more}


def completion(text, ids, finish=None, **more):
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    return {"id": "c", "choices": [{**choice, "prompt_token_ids": None, "token_ids": ids}], **more}


def as_events(events, **separators):
    return [
        b"data: " + json.dumps(event, ensure_ascii=False, **separators).encode() + b"\n\n" for event in events
    ]


texts = st.text(st.sampled_from('ab [{"\\\n]é😀'), max_size=12) | st.just(
    '"finish_reason":null,"token_ids":[1]'
)
ids = st.lists(st.integers(0, 200_000), min_size=1, max_size=3)
usage: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.integers(1, 99).map(
    lambda n: {"usage": {"prompt_tokens": 3, "completion_tokens": n}}
)
cuts = st.lists(st.integers(0, 9999), max_size=40)


@st.composite
def streams(draw):
    make = draw(st.sampled_from((chat, completion)))
    first = {**make("", None), "prompt_token_ids": [5, 6]}
    middle = [make(draw(texts), draw(ids), **draw(usage)) for _ in range(draw(st.integers(0, 12)))]
    spaces = draw(st.sampled_from(({"separators": (",", ":")}, {})))
    last = make("x", [2], draw(st.sampled_from(("stop", None))))
    events = as_events([first, *middle, last], **spaces)
    if draw(st.booleans()):
        events.insert(draw(st.integers(0, len(events))), b": ping\n\n")
    return [*events, DONE]


@st.composite
def reads(draw, events):
    """The events in chunks of one or more, or cut anywhere; one or more chunks a read, or cut anywhere."""
    content = b"".join(events)
    if draw(st.booleans()):
        chunks = [chunk(b"".join(group)) for group in grouped(draw, events)]
    else:
        places = sorted({0, len(content), *draw(st.lists(st.integers(1, len(content)), max_size=20))})
        chunks = [chunk(content[a:b]) for a, b in pairwise(places)]
    chunks.append(b"0\r\n\r\n")
    if draw(st.booleans()):
        return [b"".join(group) for group in grouped(draw, [HEAD, *chunks])]
    whole = HEAD + b"".join(chunks)
    places = sorted({0, len(whole), *(cut % len(whole) for cut in draw(cuts))})
    return [whole[a:b] for a, b in pairwise(places)]


def grouped(draw, parts):
    """The parts in order, mostly one by one."""
    at = 0
    while at < len(parts):
        size = draw(st.sampled_from((1, 1, 1, 2, 3)))
        yield parts[at : at + size]
        at += size


@given(st.data())
def test_ids_are_taken_out_and_all_else_passes_however_it_arrives(data):
    events = data.draw(streams())
    rig = Rig(messages=[])
    assert b'"return_token_ids":true' in rig.sent
    rig.feed(*data.draw(reads(events)))
    assert rig.answer() == IDS.sub(rb'"\1":null', b"".join(events))
    assert rig.wire.content.endswith(b"0\r\n\r\n")
    assert rig.client.exchange is None, "the answer is over"
    assert not rig.wire.is_closed


@given(st.data())
def test_what_a_client_asked_for_passes_as_it_is(data):
    events = data.draw(streams())
    body = data.draw(st.sampled_from(({"return_token_ids": True}, {"n": 2}, {"tools": [{}]})))
    rig = Rig(messages=[], **body)
    rig.feed(*data.draw(reads(events)))
    assert rig.answer() == b"".join(events)


@given(st.data())
def test_what_is_kept_tells_how_far_the_stream_has_come(data):
    events = data.draw(streams())[:-2] * data.draw(st.sampled_from((1, 1, 40)))
    rig = Rig(messages=[], engine=data.draw(st.sampled_from(("vllm", "llamacpp"))))
    whole = b"".join(data.draw(reads(events)))[: -len(b"0\r\n\r\n")]
    places = sorted({0, len(whole), *(cut % len(whole) for cut in data.draw(cuts))})
    rig.feed(*(whole[a:b] for a, b in pairwise(places)))
    stream = rig.client.exchange.stream
    assert stream.events == len(events)
    expected = Progress()
    expected.fold(b"".join(events))
    found = Progress()
    for part in stream.take_kept():
        found.fold(part)
    assert (found.text, found.ids, list(found.marks)) == (expected.text, expected.ids, list(expected.marks))
    assert rig.router.kept.size == 0


@pytest.mark.parametrize("size", [1, 2, 7])
def test_nearly_every_event_passes_the_usual_way(monkeypatch, size):
    """What makes an event cheap is that it is not decoded: also where several arrive in one read."""
    slowly = Stream._feed_slowly
    slow: list[bytes] = []

    def counted(stream, data, now):
        slow.append(data)
        slowly(stream, data, now)

    monkeypatch.setattr(Stream, "_feed_slowly", counted)
    for make, more in ((chat, {}), (completion, {}), (chat, {"usage": {"completion_tokens": 7}})):
        slow.clear()
        rig = Rig(messages=[])
        events = as_events([make(f"w{n}", [1000 + n], **more) for n in range(210)], separators=(",", ":"))
        rig.feed(HEAD + chunk(events[0]))
        for at in range(1, len(events), size):
            rig.feed(b"".join(map(chunk, events[at : at + size])))
        assert rig.answer() == IDS.sub(rb'"\1":null', b"".join(events))
        assert len(slow) == 1
        assert rig.client.exchange.stream.events == len(events)


@pytest.mark.parametrize("ids_wanted", [False, True])
def test_a_read_that_looks_like_a_whole_chunk_is_measured(ids_wanted):
    """A chunk whose beginning ends like a chunk: only its size tells that it goes on."""
    rig = Rig(messages=[], **({"return_token_ids": True} if ids_wanted else {}))
    first, second = as_events([chat("a", [1]), chat("b", [2])], separators=(",", ":"))
    whole = chunk(second + b"\r\n: still the same chunk\n\n")
    cut = whole.index(b"\n\n\r\n") + 4
    rig.feed(HEAD + chunk(first), whole[:cut], whole[cut:], chunk(DONE) + b"0\r\n\r\n")
    told = first + second + b"\r\n: still the same chunk\n\n" + DONE
    assert rig.answer() == (told if ids_wanted else IDS.sub(rb'"\1":null', told))


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
@pytest.mark.parametrize(
    "last", [chat("d", [4], "abort"), chat("d", None, "abort"), {"error": {"code": 500}}]
)
@pytest.mark.parametrize("is_one_chunk", [False, True])
def test_an_answer_that_its_engine_gave_up_is_continued_elsewhere(engine, last, is_one_chunk):
    async def until_it_breaks():
        rig = Rig(messages=[], engine=engine)
        said = [chat("a", [1]), chat("b", [2]), chat("c", [3]), last]
        events = as_events(said, separators=(",", ":"))
        rig.feed(HEAD + chunk(events[0]), chunk(events[1]))
        rig.feed(*([chunk(b"".join(events[2:]))] if is_one_chunk else map(chunk, events[2:])))
        assert rig.client.exchange.stream.recovery is not None
        assert b'"c"' in rig.wire.content
        assert b"abort" not in rig.wire.content
        assert b"error" not in rig.wire.content
        rig.client.connection_lost(None)

    asyncio.run(until_it_breaks())


@pytest.fixture
def busy(monkeypatch):
    """A stream beside many others."""
    monkeypatch.setattr("tandemn.router.stream.MANY_STREAMS", 1)
    rig = Rig()
    rig.feed(HEAD, chunk(as_events([chat("a", [1])])[0]))
    assert b'"a"' in rig.wire.content
    return rig


async def test_a_next_event_waits_for_what_came_with_it(busy):
    busy.feed(chunk(as_events([chat("b", [2])])[0]))
    busy.feed(chunk(as_events([chat("c", [3])])[0]))
    assert b'"b"' not in busy.wire.content
    await asyncio.sleep(0)
    assert re.findall(rb'"content": "(.)"', busy.wire.content) == [b"a", b"b", b"c"]
    busy.feed(chunk(DONE), b"0\r\n\r\n")
    await asyncio.sleep(0)
    assert busy.wire.content.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
    assert not busy.upstream.is_patient, "its next answer's first byte is somebody's"


async def test_next_events_are_passed_on_a_few_at_a_time_and_first_bytes_go_between(busy, monkeypatch):
    monkeypatch.setattr("tandemn.router.upstream.EVENTS_AT_ONCE", 2)
    seen: list[bytes] = []
    other = busy.other_upstream()
    other.feed, other.is_patient = seen.append, True
    for data in (b"1", b"2", b"3", b"4", b"5"):
        other.data_received(data)
    await asyncio.sleep(0)
    assert seen == [b"1", b"2"]
    first = busy.other_upstream()
    first.feed = seen.append
    first.data_received(b"a first byte")
    other.data_received(b"6")
    await asyncio.sleep(0)
    assert seen == [b"1", b"2", b"a first byte", b"3", b"4"]
    await asyncio.sleep(0)
    assert seen[5:] == [b"5", b"6"]


async def test_where_more_comes_than_is_passed_on_nothing_piles_up(busy, monkeypatch):
    monkeypatch.setattr("tandemn.router.upstream.MAX_WAITING", 10)
    seen: list[bytes] = []
    other = busy.other_upstream()
    other.feed, other.is_patient = seen.append, True
    for _ in range(50):
        for _ in range(20):
            other.data_received(b"x")
        await asyncio.sleep(0)
        assert len(busy.router.later.waiting) <= 10
    assert len(seen) >= 50 * 20 - 10


async def test_a_stream_keeps_its_order_when_others_end(busy, monkeypatch):
    monkeypatch.setattr("tandemn.router.upstream.EVENTS_AT_ONCE", 1)
    monkeypatch.setattr("tandemn.router.stream.MANY_STREAMS", 1000)
    busy.feed(chunk(b": a comment\n\n"), chunk(as_events([chat("b", [2])])[0]))
    await asyncio.sleep(0)
    busy.feed(chunk(as_events([chat("c", [3])])[0]))
    while busy.router.later.waiting:
        await asyncio.sleep(0)
    assert re.findall(rb'"content": "(.)"', busy.wire.content) == [b"a", b"b", b"c"]
    busy.client.connection_lost(None)


async def test_a_connection_on_which_more_than_the_answer_came_is_not_used_again(busy, monkeypatch):
    monkeypatch.setattr("tandemn.router.upstream.EVENTS_AT_ONCE", 1)
    upstream, other = busy.upstream, busy.other_upstream()
    upstream.pool.put(other)
    busy.client.data_received(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    busy.feed(chunk(DONE) + b"0\r\n\r\n")
    busy.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
    for _ in range(3):
        await asyncio.sleep(0)
    other.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
    assert upstream.transport.is_closed
    assert b"wrong" not in busy.wire.content
    assert busy.wire.content.endswith(b"right")


async def test_what_came_before_a_connection_was_lost_is_passed_on(busy):
    busy.feed(chunk(as_events([chat("b", [2])])[0]))
    busy.upstream.connection_lost(None)
    assert b'"b"' in busy.wire.content
    busy.client.connection_lost(None)


async def test_one_that_fails_keeps_no_other_from_its_turn(busy):
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report["exception"]))
    other = busy.other_upstream()

    def fails(data):
        raise ValueError(data)

    other.feed, other.is_patient = fails, True
    other.data_received(b"x")
    busy.feed(chunk(as_events([chat("b", [2])])[0]))
    await asyncio.sleep(0)
    assert [str(each) for each in reports] == ["b'x'"]
    assert other.transport.is_closed
    assert b'"b"' in busy.wire.content


def test_a_long_answer_is_kept_compressed(monkeypatch):
    monkeypatch.setattr("tandemn.router.kept.RAW_STREAM_BYTES", 10_000)
    rig = Rig(messages=[])
    events = as_events([chat(f"w{n}", [1000 + n]) for n in range(2000)], separators=(",", ":"))
    for event in events:
        rig.feed(chunk(event) if event is not events[0] else HEAD + chunk(event))
    assert rig.router.kept.size < 60_000 < sum(map(len, events))
    found = Progress()
    for part in rig.client.exchange.stream.take_kept():
        found.fold(part)
    assert found.ids == list(range(1000, 3000))


def test_past_its_limit_a_stream_is_no_longer_kept():
    rig = Rig(messages=[])
    limits = msgspec.structs.replace(rig.router.table.limits, kept_stream_bytes=5_000)
    rig.router.table = msgspec.structs.replace(rig.router.table, limits=limits)
    events = as_events([chat(f"w{n}", [1000 + n]) for n in range(200)], separators=(",", ":"))
    for event in events:
        rig.feed(chunk(event) if event is not events[0] else HEAD + chunk(event))
    assert rig.router.kept.size == 0
    assert not rig.client.exchange.stream.can_resume
    rig.feed(chunk(DONE) + b"0\r\n\r\n")
    assert rig.answer() == IDS.sub(rb'"\1":null', b"".join([*events, DONE]))


def test_a_stream_is_silent_only_while_its_backend_could_speak():
    rig = Rig(messages=[])
    rig.feed(HEAD + chunk(as_events([chat("a", [1])])[0]))
    stream = rig.client.exchange.stream
    assert stream.silent_s(100.0) == 0.0
    assert stream.silent_s(130.0) == 30.0
    rig.feed(chunk(as_events([chat("b", [2])])[0]))
    assert stream.silent_s(150.0) == 0.0
    rig.client.is_paused = True
    assert stream.silent_s(400.0) == 0.0
    rig.client.is_paused = False
    assert stream.silent_s(401.0) == 1.0


@pytest.mark.parametrize("is_cut", [False, True])
def test_nothing_of_a_stream_waits_for_the_collector(is_cut):
    """A cycle would keep the request's body, and a process without pauses seldom collects."""
    gc.collect()
    gc.disable()
    try:
        rig = Rig(messages=[{"role": "user", "content": "x" * 1000}])
        events = as_events([chat("a", [1]), chat("b", [2])], separators=(",", ":"))
        rig.feed(HEAD + chunk(events[0]), chunk(events[1]))
        assert any(isinstance(one, Stream) for one in gc.get_objects())
        if is_cut:
            rig.client.connection_lost(None)
        else:
            rig.feed(chunk(DONE), b"0\r\n\r\n")
        assert not [one for one in gc.get_objects() if isinstance(one, (Stream, Exchange))]
    finally:
        gc.enable()

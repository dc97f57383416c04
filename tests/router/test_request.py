"""A head that is read line by line from memory means what the parser makes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.router_wire import Wires

from tandemn.router import request as request_module
from tandemn.router.request import HeadReader

PLAIN = [
    b"Host: x",
    b"Accept: application/json",
    b"X-Request-Id: 17",
    b"Authorization: Bearer k",
    b"Connection: keep-alive",
    b"Cookie: a=b; c=d",
    b"X-Own: 1",
]
ODD = [
    b"Authorization:Bearer k",
    b"authorization:  Bearer k ",
    b"X-Empty:",
    b"X-Tab:\tv",
    b"X-End: v ",
    b"X-Nul: a\0b",
    b"X-Cr: a\rb",
    b"X Space: v",
    b": v",
    b"no colon",
    b" folded: v",
    b"Connection: close",
    b"Connection: X-Request-Id",
    b"Content-Length: 3",
    b"Content-Length: 03",
    b"Content-Length: +3",
    b"Content-Length: 9999999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b"TE: trailers",
    b"Keep-Alive: timeout=5",
    b"X-Latin: \xe9",
]
FIRST = [
    b"POST /v1/chat/completions HTTP/1.1",
    b"GET /v1/models?x=1 HTTP/1.1",
    b"DELETE / HTTP/1.1",
    b"POST /v1/completions HTTP/1.0",
    b"POST  /two HTTP/1.1",
    b"post /lower HTTP/1.1",
    b"CONNECT x:1 HTTP/1.1",
    b"GET http://x/absolute HTTP/1.1",
    b"GET /caf\xc3\xa9 HTTP/1.1",
    b"GET * HTTP/1.1",
    b"",
]


def outcome(head, *, cut):
    """What the backend and the client get for one request; cut in two, it goes through the parser."""
    wires = Wires(headers={"X-Own": "table"})
    for part in (head[:cut], head[cut:]) if cut else (head,):
        wires.client.data_received(part)
    return wires.sent, wires.wire.content, wires.wire.is_closed


@given(
    st.sampled_from(FIRST[:3]) | st.sampled_from(FIRST),
    st.lists(st.sampled_from(PLAIN) | st.sampled_from(ODD), max_size=6, unique=True),
    st.sampled_from([None, 0, 3, 5]),
)
def test_it_means_the_same_to_the_parser(first, lines, length):
    if length is not None:
        lines = [*lines, b"Content-Length: %d" % length]
    head = b"\r\n".join([first, *lines, b"", b""]) + b"abc"[: length or 0]
    assert outcome(head, cut=0) == outcome(head, cut=2)


def test_plain_heads_do_not_reach_the_parser():
    reader = HeadReader([b"x-own"])
    for number in range(3):
        lines = [*PLAIN, b"X-Trace: %d" % number, b"Content-Length: 5"]
        request = reader.read(b"\r\n".join([FIRST[1], *lines, b"", b""]))
        assert request is not None
        assert (request.method, request.target, request.path) == (b"GET", b"/v1/models?x=1", b"/v1/models")
        assert (request.content_length, request.authorization) == (5, b"Bearer k")
        fields = b"Accept: application/json\r\nX-Request-Id: 17\r\nCookie: a=b; c=d\r\nX-Trace: %d\r\n"
        assert request.fields == fields % number
    bare = reader.read(b"GET / HTTP/1.1\r\n\r\n")
    assert bare is not None
    assert bare.fields == b""


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(request_module, "MAX_KNOWN_LINES", 20)
    reader = HeadReader()
    for number in range(200):
        head = b"GET /%d HTTP/1.1\r\nX-Id: %d\r\nX-Long: %b\r\n\r\n" % (number, number, b"x" * 600)
        request = reader.read(head)
        assert request is not None
        assert request.target == b"/%d" % number
        assert len(reader._lines) <= 20
        assert len(reader._targets) <= 20
    assert not any(len(line) > 512 for line in reader._lines)

"""HTTP as peers really speak it, through a real router process."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from typing import Any

import pytest
from tests.fakes.router_rig import ADMIN, KEY, Events, Rig, ask, backend, metrics, raw, wait_for
from tests.fakes.scripted import OK, SSE, Scripted, chunk, closes, replies, reset
from tests.ports import free_port

HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n".encode()


class House:
    """One router; each test gives it the backends that it wants through `/router/config`."""

    def __init__(self, folder) -> None:
        self.rig = Rig(folder)
        self.router = self.rig.router(extra=("--grace-s", "5"))
        self.port = self.router.port
        self.opened: list[Scripted] = []

    def use(self, *scripts, limits=None, **more):
        """Scripted backends, the cheapest first; returns them."""
        made = [Scripted(script) for script in scripts]
        self.opened += made
        names = [f"b{number}-{time.monotonic_ns()}" for number in range(len(made))]
        urls = zip(names, made, strict=True)
        self.push(
            [backend(n, m.url, price_usd_per_hour=float(i), **more) for i, (n, m) in enumerate(urls)], limits
        )
        return made

    def push(self, backends, limits=None) -> None:
        table = {"version": 1, "backends": backends, "limits": limits or {}}
        status, _, body = ask(self.port, table, path="/router/config", method="PUT", key=ADMIN)
        assert status == 200, body


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("router"))
    yield house
    house.rig.end()


@pytest.fixture
def house(running):
    yield running
    while running.opened:
        running.opened.pop().end()


def request(method=b"POST", target=b"/v1/embeddings", body=b"{}", more=b"", close=True):
    end = b"Connection: close\r\n" if close else b""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"%b %b HTTP/1.1\r\n%b%b%b%b\r\n%b" % (method, target, HEAD, more, end, length, body)


# --- a bad backend before the first byte: the other one answers -----------------------------------------


def half_closes(sock, _):
    sock.shutdown(socket.SHUT_WR)
    time.sleep(0.5)


def cuts(begun):
    def script(sock, _):
        sock.sendall(begun)
        reset(sock)

    return script


BAD: dict[str, Any] = {
    "closes": closes,
    "resets": lambda sock, _: reset(sock),
    "half closes": half_closes,
    "garbage": replies(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "503": replies(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    "500": replies(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"),
    "429": replies(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"),
    "ambiguous": replies(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "within the head": cuts(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "within the body": cuts(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_20_of_20_are_answered_where_the_first_backend_is_bad(house, case):
    bad, good = house.use(BAD[case], replies(OK))
    answers = [ask(house.port, {"n": n}, path="/v1/embeddings") for n in range(20)]
    assert [(status, body) for status, _, body in answers] == [(200, b"ok")] * 20
    assert bad.requests
    assert len(good.requests) == 20
    assert json.loads(good.requests[0].partition(b"\r\n\r\n")[2]) == {"n": 0}


def test_a_backend_that_refuses_connections_is_passed_over_and_then_left_alone(house):
    (good,) = house.use(replies(OK))
    house.push(
        [
            backend("dead", f"http://127.0.0.1:{free_port()}"),
            backend("good", good.url, price_usd_per_hour=2.0),
        ]
    )
    assert [ask(house.port, {}, path="/v1/embeddings")[0] for _ in range(20)] == [200] * 20
    assert metrics(house.port)['tandemn_router_failures_total{backend="dead"}'] < 10


def test_a_slow_first_byte_is_not_waited_for(house):
    def slow(sock, _):
        time.sleep(3)

    _, good = house.use(slow, replies(OK), limits={"answer_s": 0.3})
    assert ask(house.port, {}, path="/v1/embeddings")[0] == 200
    assert len(good.requests) == 1


def test_an_error_of_the_only_backend_is_passed_on(house):
    house.use(replies(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"))
    status, _, body = ask(house.port, {}, path="/v1/embeddings")
    assert (status, body) == (503, b"busy")


def test_without_any_backend_the_answer_is_503_with_retry_after(house):
    house.push([])
    status, headers, body = ask(house.port, {})
    assert status == 503
    assert headers["Retry-After"] == "1"
    assert json.loads(body)["error"]["code"] == "no_backend"


def test_what_must_not_be_repeated_is_not(house):
    _, good = house.use(closes, replies(OK))
    status, _, _ = ask(house.port, {}, path="/v1/thing", method="DELETE")
    assert status == 502
    assert not good.requests


def test_an_answer_cut_in_its_middle_looks_cut(house):
    def cut(sock, _):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 500_000)
        time.sleep(0.1)
        reset(sock)

    house.use(cut)
    got = raw(house.port, request())
    assert len(got) < 600_000


# --- what passes, passes byte for byte ------------------------------------------------------------------


def test_every_method_and_path_passes_with_its_fields(house):
    (only,) = house.use(replies(OK), headers={"Authorization": "Bearer engine-key", "X-Own": "1"})
    for method in (b"GET", b"PUT", b"PATCH", b"OPTIONS", b"DELETE", b"POST"):
        raw(house.port, request(method, b"/a/b%20c?d=e&f", b"", b"X-Custom: caf\xe9\r\nX-own: theirs\r\n"))
        seen = only.requests[-1]
        assert seen.startswith(method + b" /a/b%20c?d=e&f HTTP/1.1\r\n")
        assert b"X-Custom: caf\xe9\r\n" in seen
        assert b"Authorization: Bearer engine-key\r\n" in seen
        assert seen.lower().count(b"x-own:") == 1
        assert KEY.encode() not in seen
        assert b"connection: close" not in seen.lower()
        assert f"Host: 127.0.0.1:{only.port}\r\n".encode() in seen


def test_fields_named_by_connection_stay_here(house):
    (only,) = house.use(replies(OK))
    raw(
        house.port,
        request(more=b"Connection: X-Hop, close\r\nX-Hop: 1\r\nX-Kept: 2\r\nTE: trailers\r\n", close=False),
    )
    assert b"X-Hop" not in only.requests[0]
    assert b"X-Kept: 2\r\n" in only.requests[0]
    assert b"\r\nTE:" not in only.requests[0]


def test_gzip_passes_byte_for_byte(house):
    packed = gzip.compress(b'{"usage":{"prompt_tokens":1}}' * 100)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    house.use(replies(answer % len(packed) + packed))
    assert raw(house.port, request()).endswith(packed)
    stream = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    house.use(replies(stream + chunk(packed[:50]) + chunk(packed[50:]) + b"0\r\n\r\n"))
    assert chunk(packed[:50]) + chunk(packed[50:]) in raw(house.port, request())


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(house, status):
    house.use(replies(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"))
    got = raw(house.port, request(b"GET", b"/x", b"", close=False) + request(b"GET", b"/y", b""))
    assert got.count(b"HTTP/1.1 " + status) == 2


def test_head_has_the_fields_and_no_body(house):
    house.use(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"))
    got = raw(house.port, request(b"HEAD", b"/x", b"", close=False) + request(b"HEAD", b"/y", b""))
    assert got.count(b"Content-Length: 500") == 2
    assert got.endswith(b"\r\n\r\n")


def test_early_hints_are_dropped_and_the_answer_kept(house):
    house.use(replies(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK))
    got = raw(house.port, request())
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(b"ok")


def test_chunked_answers_keep_their_chunks_and_trailers(house):
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    )
    house.use(replies(answer))
    assert b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n" in raw(house.port, request())


def test_an_old_client_gets_no_chunks(house):
    house.use(
        replies(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    )
    got = raw(house.port, b"GET /x HTTP/1.0\r\n" + HEAD + b"\r\n")
    assert got.endswith(b"\r\n\r\nabcde")
    assert b"chunked" not in got.lower()


def test_an_answer_that_ends_with_its_connection(house):
    def until_close(sock, _):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        time.sleep(0.05)
        sock.sendall(b"it")
        sock.close()

    house.use(until_close)
    got = raw(house.port, request(close=False))
    assert got.endswith(b"all of it")
    assert b"connection: close" in got.lower()


def test_pipelined_requests_are_answered_in_order(house):
    def echo(sock, asked):
        name = asked.split(b" ")[1]
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    house.use(echo)
    wires = [request(b"GET", b"/%02d" % n, b"", close=n == 49) for n in range(50)]
    got = raw(house.port, b"".join(wires))
    assert [int(part[-2:]) for part in got.split(b"HTTP/1.1 ")[1:]] == list(range(50))


def test_a_request_in_single_bytes(house):
    (only,) = house.use(replies(OK))
    with socket.create_connection(("127.0.0.1", house.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request())):
            sock.sendall(request()[at : at + 1])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert len(only.requests) == 1


# --- requests with bodies -------------------------------------------------------------------------------


def test_expect_continue_is_answered_before_the_body(house):
    (only,) = house.use(replies(OK))
    with socket.create_connection(("127.0.0.1", house.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/x HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    assert only.requests[0].endswith(b"hello")
    assert b"Expect" not in only.requests[0]


def test_a_wrong_key_gets_no_continue(house):
    house.use(replies(OK))
    wire = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nhello"
    got = raw(house.port, wire)
    assert got.startswith(b"HTTP/1.1 401")


def test_chunked_requests(house):
    (only,) = house.use(replies(OK))
    wire = b"POST /v1/x HTTP/1.1\r\n" + HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    got = raw(house.port, wire + b"3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200")
    assert only.requests[0].endswith(b"\r\n\r\nabcdefg")
    assert b"Content-Length: 7" in only.requests[0]


@pytest.mark.parametrize("is_kept", [True, False])
def test_bodies_of_20_mb(house, is_kept):
    body = os.urandom(20 << 20)
    (only,) = house.use(replies(OK), limits={} if is_kept else {"kept_body_bytes": 1 << 20})
    assert raw(house.port, request(body=body), 30).startswith(b"HTTP/1.1 200")
    assert only.requests[0].endswith(body)


def test_a_long_chunked_body_passes_as_it_comes(house):
    (only,) = house.use(replies(OK), limits={"kept_body_bytes": 1000})
    pieces = b"".join(chunk(b"%d" % (n % 10) * 1000) for n in range(200)) + b"0\r\n\r\n"
    wire = b"POST /v1/x HTTP/1.1\r\n" + HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(house.port, wire + pieces).startswith(b"HTTP/1.1 200")
    assert only.requests[0].count(b"7" * 1000) == 20


def test_a_slow_reader_gets_all_of_a_long_answer_and_holds_its_source_back(house):
    sent = []

    def pour(sock, _):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n")
        for _ in range(400):
            sock.sendall(b"z" * 100_000)
            sent.append(1)

    house.use(pour)
    with socket.create_connection(("127.0.0.1", house.port), timeout=20) as sock:
        sock.sendall(request())
        time.sleep(0.6)
        assert len(sent) < 300, "the router took in what its client did not take"
        got = 0
        while piece := sock.recv(1 << 20):
            got += piece.count(b"z")
    assert got == 40_000_000


# --- what is refused ------------------------------------------------------------------------------------

REFUSED = {
    "both framings": (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"400"),
    "both framings, the other way": (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"400"),
    "two lengths": (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"400"),
    "no number": (b"Content-Length: +3\r\n", b"400"),
    "unknown coding": (b"Transfer-Encoding: gzip, chunked\r\n", b"400"),
    "unknown coding alone": (b"Transfer-Encoding: identity\r\n", b"400"),
    "upgrade": (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"501"),
    "a space before the colon": (b"X-A : b\r\n", b"400"),
    "an oversized head": (b"X-A: " + b"a" * 70_000 + b"\r\n", b"431"),
    "many fields": (b"X-A: b\r\n" * 12_000, b"431"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_ambiguous_requests_are_refused(house, case):
    (only,) = house.use(replies(OK))
    fields, status = REFUSED[case]
    got = raw(house.port, b"POST /v1/x HTTP/1.1\r\n" + HEAD + fields + b"\r\nabc")
    assert got[9:12] == status, got[:200]
    assert b"connection: close" in got.lower()
    assert not only.requests


def test_garbage_is_refused_after_the_answers_before_it(house):
    house.use(replies(OK))
    got = raw(house.port, request(close=False) + b"\x16\x03\x01\x02\x00 tls?\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in got


def test_connect_is_refused(house):
    house.use(replies(OK))
    assert raw(house.port, b"CONNECT a:1 HTTP/1.1\r\n" + HEAD + b"\r\n").startswith(b"HTTP/1.1 501")


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x"])
def test_a_wrong_key_is_refused_and_reaches_nobody(house, key):
    (only,) = house.use(replies(OK))
    status, _, body = ask(house.port, {}, key=key)
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert not only.requests
    assert ask(house.port, None, path="/metrics", method="GET", key=key)[0] == 401
    assert ask(house.port, None, path="/router/config", method="GET", key=KEY)[0] == 401
    assert json.loads(ask(house.port, None, path="/router/health", method="GET", key=key)[2]).keys() == {
        "status"
    }


def test_keys_of_the_table_stand_in_place_of_the_one_that_it_was_started_with(house):
    house.use(replies(OK))
    table = json.loads(ask(house.port, None, path="/router/config", method="GET", key=ADMIN)[2])

    def put(keys):
        table["keys"] = keys
        return ask(house.port, table, path="/router/config", method="PUT", key=ADMIN)[0]

    def taken(*keys):
        return [ask(house.port, {}, key=key)[0] for key in keys]

    assert put(["new", "old"]) == 200
    assert taken("new", "old", KEY, "ne") == [200, 200, 401, 401]
    assert put(["new"]) == 200
    assert taken("new", "old") == [200, 401]
    assert put([]) == 400
    assert taken("new") == [200]
    assert put(None) == 200
    assert taken("new", KEY) == [401, 200]


# --- streams --------------------------------------------------------------------------------------------


def test_events_cut_anywhere_arrive_whole(house):
    def dribble(sock, _):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(SSE)
        content = b"".join(b'data: {"n":%d}\n\n' % n for n in range(30)) + b"data: [DONE]\n\n"
        pieces = [content[at : at + 7] for at in range(0, len(content), 7)]
        for piece in pieces:
            sock.sendall(chunk(piece))
            time.sleep(0.001)
        sock.sendall(b"0\r\n\r\n")

    house.use(dribble)
    seen = list(Events(house.port, {"messages": []}))
    assert [json.loads(data)["n"] for data in seen[:-1]] == list(range(30))
    assert seen[-1] == "[DONE]"


def test_a_truncated_stream_of_another_api_never_leaves_half_an_event(house):
    def cut(sock, _):
        sock.sendall(SSE + chunk(b'data: {"n":1}\n\n') + chunk(b'data: {"n":2}\n\ndata: {"n'))
        time.sleep(0.05)
        reset(sock)

    house.use(cut)
    seen = list(Events(house.port, {"input": "x"}, path="/v1/responses"))
    assert json.loads(seen[1]) == {"n": 2}
    assert json.loads(seen[2])["error"]["code"] == "stream_broken"
    assert seen[3] == "[DONE]"


def test_the_upstream_call_ends_when_the_client_leaves(house):
    ended = []

    def forever(sock, _):
        try:
            sock.sendall(SSE)
            while True:
                sock.sendall(chunk(b"data: {}\n\n"))
                time.sleep(0.01)
        except OSError:
            ended.append(1)
            raise

    house.use(forever)
    events = Events(house.port, {"messages": []})
    next(iter(events))
    events.close()
    wait_for(lambda: ended)


def test_a_connection_is_there_for_the_next_request_where_others_are_under_way(house):
    used = []

    def streams(sock, _):
        used.append(sock.getpeername())
        sock.sendall(SSE + chunk(b"data: {}\n\n"))
        time.sleep(5)

    (busy,) = house.use(streams)
    events = [Events(house.port, {"messages": []}) for _ in range(2)]
    for each in events:
        next(iter(each))
    wait_for(lambda: len(busy.peers) == 3)
    (spare,) = set(busy.peers) - set(used)
    events.append(Events(house.port, {"messages": []}))
    next(iter(events[-1]))
    assert used[-1] == spare
    for each in events:
        each.close()


def test_who_asks_one_thing_after_the_other_gets_by_with_one_connection(house):
    (calm,) = house.use(replies(OK))
    for _ in range(10):
        assert ask(house.port, {}, path="/v1/embeddings")[0] == 200
    assert len(calm.peers) == 1


def test_the_silent_loss_of_a_backend_is_noticed(house):
    """The kernel of a preempted machine answers nothing: no data, no ACK, no RST."""
    ids = b'data: {"id":"a","choices":[{"index":0,"text":"%b","token_ids":[%d],"prompt_token_ids":%b}]}\n\n'

    def falls_silent(sock, _):
        sock.sendall(SSE + chunk(ids % (b"a", 97, b"[1]")) + chunk(ids % (b"b", 98, b"null")))
        attach_drop_all(sock)
        time.sleep(30)

    def goes_on(sock, asked):
        sent = json.loads(asked.partition(b"\r\n\r\n")[2])
        assert sent["prompt"] == [1, 97, 98]
        sock.sendall(SSE + chunk(ids % (b"c", 99, b"null")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    house.use(falls_silent, goes_on, limits={"silence_s": 2})
    seen = list(Events(house.port, {"prompt": "x", "max_tokens": 9}, path="/v1/completions"))
    assert [json.loads(data)["choices"][0]["text"] for data in seen[:-1]] == ["a", "b", "c"]
    assert seen[-1] == "[DONE]"


def attach_drop_all(sock):
    """A socket filter that drops every packet before TCP sees it: as if the machine were gone."""
    import ctypes
    import struct

    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))


def test_the_table_is_pushed_under_load(house):
    first = second = house.use(replies(OK))
    import threading

    results, is_over = [], threading.Event()

    def load():
        while not is_over.is_set():
            results.append(ask(house.port, {}, path="/v1/embeddings")[0])

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        second = house.use(replies(OK))
        time.sleep(0.05)
    is_over.set()
    for thread in threads:
        thread.join()
    assert set(results) == {200}
    assert len(results) > 50
    assert first[0].requests
    assert second[0].requests


def test_a_bad_table_changes_nothing(house):
    (only,) = house.use(replies(OK))
    bad = {"version": 1, "backends": [{"name": "x", "market": "spot", "url": "http://h", "replicas": "two"}]}
    status, _, body = ask(house.port, bad, path="/router/config", method="PUT", key=ADMIN)
    assert status == 400
    assert "$.backends[0].replicas" in json.loads(body)["error"]["message"]
    assert ask(house.port, {}, path="/v1/embeddings")[0] == 200
    assert only.requests


def test_full_backends_overflow_and_then_429(house):
    import threading

    gate = threading.Event()

    def waits(sock, _):
        gate.wait(10)
        sock.sendall(OK)

    cheap, dear = house.use(waits, waits, concurrency=2)
    codes = []
    threads = [
        threading.Thread(target=lambda: codes.append(ask(house.port, {}, path="/v1/e")[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(cheap.requests) == 2 and len(dear.requests) == 2)
    status, headers, _ = ask(house.port, {}, path="/v1/e")
    assert status == 429
    assert headers["Retry-After"] == "1"
    gate.set()
    for thread in threads:
        thread.join()
    assert codes == [200] * 4

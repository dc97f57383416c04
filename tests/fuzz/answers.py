"""The router's reading of a backend's answer: heads, chunks and events; whatever comes, it is read or refused."""

from __future__ import annotations

from tests.fuzz import target

MODULES = ("tandemn.router.wire", "tandemn.router.sse")

SEEDS = [
    b"\x03HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: application/json\r\n\r\nhello",
    b"\x01HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n",
    b'\x01e\r\ndata: {"a":1}\n\n\r\n0\r\n\r\n',
    b"\x05HTTP/1.0 503 Busy\r\nConnection: close, x\r\nRetry-After: 1\r\n\r\n",
    b"\x07HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1",
    b"\x025;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\nrest",
    b'\x04data: {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}\r\n\r\ndata: [DONE]\n\n',
]


def check(data: bytes) -> None:
    if not data:
        return
    step, content = data[0] + 1, data[1:]
    pieces = [content[at : at + step] for at in range(0, len(content), step)]
    _head(content)
    _chunks(content, pieces)
    _events(content, pieces)


def _head(content: bytes) -> None:
    from tandemn.router.sse import Garbled
    from tandemn.router.wire import read_answer_head, rewrite_head

    end = content.find(b"\r\n\r\n")
    if end < 0:
        return
    try:
        head = read_answer_head(content[: end + 4])
    except Garbled:
        return
    assert head.length is None or not head.is_chunked, "two framings at a time"
    rewritten = rewrite_head(head, framing=b"Content-Length: 0\r\n", close=True)
    # What the router writes it can read, and the backend's own framing is not in it any more.
    again = read_answer_head(rewritten)
    assert (again.status, again.length, again.is_chunked) == (head.status, 0, False)
    assert rewritten.count(b"\r\n\r\n") == 1
    assert b"\n" not in rewritten.replace(b"\r\n", b"")


def _chunks(content: bytes, pieces: list[bytes]) -> None:
    assert _decoded([content]) == _decoded(pieces), "it depends on how the answer is cut"


def _decoded(pieces: list[bytes]) -> tuple[bytes, bool] | None:
    from tandemn.router.sse import ChunkDecoder, Garbled

    decoder, out = ChunkDecoder(), b""
    try:
        for piece in pieces:
            out += decoder.feed(piece)
            if decoder.is_ended:
                break
    except Garbled:
        return None
    return out, decoder.is_ended


def _events(content: bytes, pieces: list[bytes]) -> None:
    from tandemn.router.sse import EventCutter, as_chunk, data_of
    from tandemn.router.wire import find_usage

    for how in ([content], pieces):
        cutter = EventCutter()
        out = b"".join(cutter.feed(piece) for piece in how)
        assert out + cutter.held == content, "nothing is lost, nothing comes twice"
        assert not out or out.endswith((b"\n\n", b"\n\r\n")), "events are passed on whole"
        assert b"\n\n" not in cutter.held, "a whole event is held back"
        assert b"\n\r\n" not in cutter.held, "a whole event is held back"
        data_of(out)
    find_usage(content)
    if out:
        assert _decoded([as_chunk(out) + b"0\r\n\r\n"]) == (out, True)


if __name__ == "__main__":
    target.run("answers", check, SEEDS, MODULES)

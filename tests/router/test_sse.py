"""However a backend's bytes are cut, the same whole events come out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.router.sse import (
    CHUNK_BEGINS,
    MAX_QUICK_BYTES,
    SIZE_LINES,
    ChunkDecoder,
    EventCutter,
    Garbled,
    as_chunk,
    chunk_end,
    data_of,
)

contents = st.lists(st.binary(min_size=1, max_size=60), max_size=12)
cuts = st.lists(st.integers(0, 2000), max_size=20)


def pieces(whole: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(whole), *(place % (len(whole) + 1) for place in at)})
    return [whole[a:b] for a, b in pairwise(places)]


@given(
    contents,
    cuts,
    st.sampled_from([b"", b";a=b", b" "]),
    st.sampled_from([b"", b"X-T: 1\r\n", b"A: b\r\nC: d\r\n"]),
)
def test_chunks_cut_anywhere_give_the_same_content(parts, at, extension, trailers):
    whole = b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    whole += b"0\r\n" + trailers + b"\r\n"
    decoder = ChunkDecoder()
    got = b"".join(decoder.feed(piece) for piece in pieces(whole + b"NEXT", at))
    assert got == b"".join(parts)
    assert decoder.is_ended
    assert decoder.rest == b"NEXT"


lines = st.sampled_from([b"data: x", b"data:", b": comment", b'data: {"a":"\\n"}', b"event: y\ndata: z"])
ends = st.sampled_from([b"\n\n", b"\r\n\r\n"])
events = st.lists(st.tuples(lines, ends).map(b"".join), max_size=12)


@given(events, lines | st.just(b""), cuts)
def test_events_cut_anywhere_are_the_same_events(whole_events, begun, at):
    whole = b"".join(whole_events) + begun
    cutter = EventCutter()
    fed = [cutter.feed(piece) for piece in pieces(whole, at)]
    assert b"".join(fed) == b"".join(whole_events)
    assert cutter.held == begun
    ends_seen = {sum(map(len, fed[:n])) for n in range(len(fed) + 1)}
    assert ends_seen <= {sum(map(len, whole_events[:n])) for n in range(len(whole_events) + 1)}


@given(st.integers(0, 1500), st.binary(max_size=20))
def test_the_end_of_a_whole_chunk_is_where_the_decoder_finds_it(size, more):
    piece = b"%x\r\n%b\r\n" % (size, bytes(size))
    if size:
        assert chunk_end(more + piece + more, len(more)) == len(more + piece)
        assert CHUNK_BEGINS[len(piece)] == piece[: -size - 2] == SIZE_LINES[size]
    else:
        assert chunk_end(piece, 0) == 0, "the last chunk ends the message"
    assert chunk_end(piece[:-1], 0) == 0
    assert not any((b"x" * n).startswith(CHUNK_BEGINS[n]) for n in range(MAX_QUICK_BYTES))


@given(st.binary(max_size=60))
def test_other_bytes_are_only_taken_for_a_chunk_that_the_decoder_takes_too(piece):
    end = chunk_end(piece, 0)
    if end and piece[end - 2 : end] == b"\r\n":
        content = piece[piece.index(b"\n") + 1 : end - 2]
        assert ChunkDecoder().feed(piece[:end]) == content
    if piece.startswith(CHUNK_BEGINS[len(piece)]) and piece.endswith(b"\r\n"):
        assert chunk_end(piece, 0) == len(piece)


@pytest.mark.parametrize(
    "bad", [b"x\r\n", b"-1\r\n", b"\r\n", b"5\nhello", b"3\r\nabcX", b"0x3\r\nabc\r\n", b"f" * 20 + b"\r\n"]
)
def test_what_is_no_chunked_coding_is_refused(bad):
    with pytest.raises(Garbled):
        ChunkDecoder().feed(bad + b"\r\n" * 600)


def test_endless_lines_are_refused():
    with pytest.raises(Garbled):
        ChunkDecoder().feed(b"1;" + b"a" * 5000)
    with pytest.raises(Garbled):
        ChunkDecoder().feed(b"0\r\n" + b"a" * 70_000)


def test_data_lines_are_found_in_chunks_and_out_of_them():
    events = b'data: {"a":1}\n\n' + as_chunk(b"data:{}\r\n\r\n") + b": comment\n\ndata: [DONE]\n\n"
    assert data_of(events) == [b'{"a":1}', b"{}", b"[DONE]"]

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batch.lines import CHAT, line, validated

from tandemn.batch.request_line import MAX_LINE_BYTES, LineSplitter, iter_requests, prepare_body
from tandemn.errors import Broken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.batch.split import ChunkRange


async def blocks_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(data: bytes, chunk: ChunkRange, *, size: int = 100, **options: object):
    blocks = blocks_of(data[chunk.byte_start : chunk.byte_end], size)
    requests = iter_requests(
        blocks,
        byte_start=chunk.byte_start,
        requests=chunk.requests,
        skipped=frozenset(chunk.skipped),
        **options,  # type: ignore[arg-type]  # one of the two options of the body
    )
    return [request async for request in requests]


@pytest.mark.parametrize("size", [1, 50, 1 << 20])
@pytest.mark.parametrize("chunk_requests", [1, 2, 100])
async def test_chunks_give_every_request_once_in_order_whatever_lies_between(size, chunk_requests):
    good = [line(f"{i}") for i in range(5)]
    data = b"\xef\xbb\xbf" + b"\n".join(
        [b"bad", good[0], b"", good[1], b"bad", b"\r", good[2], good[0], good[3], b"[]", good[4], b"bad"]
    )
    chunks = validated(data, chunk_requests)
    seen = []
    for chunk in chunks:
        requests = await read(data, chunk, size=size)
        assert [request.index for request in requests] == list(range(chunk.requests))
        seen += requests
    assert [request.custom_id for request in seen] == ["0", "1", "2", "3", "4"]
    assert {request.url for request in seen} == {CHAT}


async def test_a_skipped_line_of_any_length_is_not_held():
    data = b"\n".join([line("a"), b"x" * (MAX_LINE_BYTES + 5), line("b"), b"y" * (MAX_LINE_BYTES + 5)])
    (chunk,) = validated(data, 10)
    assert [r.custom_id for r in await read(data, chunk, size=1 << 20)] == ["a", "b"]


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_the_splitter_cuts_at_lf_only(lines, size):
    data = b"\n".join(lines)
    splitter = LineSplitter(5)
    found = [pair for at in range(0, len(data), size) for pair in splitter.feed(data[at : at + size])]
    found += splitter.end()
    pieces = data.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    assert [text for _, text in found] == pieces
    assert all(data[at - 5 : at - 5 + len(text)] == text for at, text in found)


@pytest.mark.parametrize("replaced", [b"", b"{}\n{}\n", line("a") + b"\n" + line("b") + b"\n" + line("c")])
async def test_an_input_that_was_replaced_is_noticed(replaced):
    (chunk,) = validated(line("a") + b"\n" + line("b"), 10)
    with pytest.raises(Broken) as failure:
        async for _ in iter_requests(blocks_of(replaced, 10), byte_start=0, requests=chunk.requests):
            pass
    assert failure.value.code == "input_changed"


@pytest.mark.parametrize(
    ("given_limits", "expected"),
    [
        ({}, {"max_tokens": 64}),
        ({"max_tokens": 10}, {"max_tokens": 10}),
        ({"max_tokens": 100}, {"max_tokens": 64}),
        ({"max_tokens": None}, {"max_tokens": 64}),
        ({"max_completion_tokens": 100}, {"max_completion_tokens": 64}),
        ({"max_completion_tokens": 1e9, "max_tokens": 5}, {"max_completion_tokens": 64, "max_tokens": 5}),
        ({"max_tokens": "many"}, {"max_tokens": "many"}),
    ],
)
def test_output_limits_are_capped_and_added(given_limits, expected):
    body = {"messages": [{"content": "é\u2028 1.0e5"}], "x": [1.50, {"y": None}], **given_limits}
    prepared = prepare_body(json.dumps(body).encode(), CHAT, model="other", max_output_tokens=64)
    assert json.loads(prepared) == {**body, "model": "other", **expected}
    assert b"\n" not in prepared


def test_a_body_that_needs_no_change_passes_as_it_is():
    assert prepare_body(b'{ "a" : 1 }', CHAT, model=None, max_output_tokens=None) == b'{ "a" : 1 }'
    assert prepare_body(b'{"input":1}', "/v1/embeddings", model=None, max_output_tokens=5) == b'{"input":1}'


def test_the_runner_loads_neither_numpy_nor_the_object_store():
    code = "import tandemn.batch.request_line, tandemn.batch.answers, sys; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "obstore", "tandemn.objects", "pydantic"} & set(modules)

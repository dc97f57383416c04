from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.batch.split import MAX_CHUNK_REQUESTS, LineIndex, chunk_size, split
from tandemn.errors import Broken


@st.composite
def indexes(draw):
    gaps = draw(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=60))
    positions = np.cumsum([gap for gap, _ in gaps])
    good = np.array([is_request for _, is_request in gaps])
    return LineIndex(
        starts=positions[good].astype(np.uint64),
        skipped=positions[~good].astype(np.uint64),
        end=int(positions[-1]) + 10,
    )


@given(indexes(), st.integers(1, 70))
def test_every_request_is_in_one_chunk_in_order(index, size):
    chunks = split(index, size)
    starts = index.starts.tolist()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    seen: list[int] = []
    for chunk in chunks:
        inside = [start for start in starts if chunk.byte_start <= start < chunk.byte_end]
        assert len(inside) == chunk.requests
        assert 1 <= chunk.requests <= size
        assert chunk.first_request == len(seen)
        assert chunk.skipped == tuple(
            at for at in index.skipped.tolist() if chunk.byte_start <= at < chunk.byte_end
        )
        seen += inside
    assert seen == starts
    assert all(a.byte_end == b.byte_start for a, b in itertools.pairwise(chunks))


@given(st.integers(1, 10**8), st.floats(0, 1e6), st.integers(0, 1000))
def test_chunks_are_of_a_sane_size(requests, rate, replicas):
    size = chunk_size(requests, requests_per_s=rate, replicas=replicas)
    assert 1 <= size <= MAX_CHUNK_REQUESTS


def test_chunks_are_fifteen_seconds_of_work_and_enough_for_all():
    assert chunk_size(1_000_000, requests_per_s=20, replicas=4) == 300
    assert chunk_size(400, requests_per_s=100, replicas=2) == 50
    assert chunk_size(3, requests_per_s=100, replicas=8) == 1


def test_a_damaged_index_is_noticed():
    index = LineIndex(starts=np.arange(5, dtype=np.uint64), skipped=np.array([9], np.uint64), end=12)
    data = b"".join(index.encode())
    assert LineIndex.decode(data).skipped.tolist() == [9]
    for damaged in (b"", data[:-1], data + b"1", b"x" + data[1:]):
        with pytest.raises(Broken) as failure:
            LineIndex.decode(damaged)
        assert failure.value.code == "index_damaged"

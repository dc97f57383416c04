"""Chunks of a job's input: byte ranges of the input object, cut by an index of where its requests begin."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tandemn.errors import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Seconds of the slowest replica's work in a chunk: long against a lease round trip, short against what a
#: lost replica costs.
CHUNK_S = 15.0
#: Chunks that every replica should find, so that none is idle while another works on a last large one.
CHUNKS_PER_REPLICA = 4
#: A chunk's answers are held in memory by its runner until they are stored.
MAX_CHUNK_REQUESTS = 10_000

_HEADER = struct.Struct("<8sQQQ")
_MAGIC = b"tdm-idx1"
_POSITION_BYTES = 8
_ENCODE_POSITIONS = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LineIndex:
    """Where each request of an input begins."""

    starts: NDArray[np.uint64]
    """Byte position of each request's line, ascending."""
    skipped: NDArray[np.uint64]
    """Byte positions of the lines that are no requests, blank ones not counted, ascending."""
    end: int
    """Bytes of the input."""

    def encode(self) -> Iterator[bytes]:
        """Blocks of the stored form: a header, then both arrays, little-endian."""
        yield _HEADER.pack(_MAGIC, len(self.starts), len(self.skipped), self.end)
        for positions in (self.starts, self.skipped):
            for at in range(0, len(positions), _ENCODE_POSITIONS):
                yield positions[at : at + _ENCODE_POSITIONS].astype("<u8", copy=False).tobytes()

    @classmethod
    def decode(cls, data: bytes) -> LineIndex:
        """Read the stored form.

        Raises:
            Broken: `index_damaged`.
        """
        if len(data) < _HEADER.size:
            raise Broken("the index of the job's input is damaged", code="index_damaged")
        magic, requests, skipped, end = _HEADER.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEADER.size + (requests + skipped) * _POSITION_BYTES:
            raise Broken("the index of the job's input is damaged", code="index_damaged")
        positions = np.frombuffer(data, "<u8", offset=_HEADER.size).astype(np.uint64, copy=False)
        return cls(starts=positions[:requests], skipped=positions[requests:], end=end)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRange:
    index: int
    """Position in the job, from 0."""
    byte_start: int
    byte_end: int
    """Exclusive."""
    first_request: int
    """Position in the job of its first request, from 0."""
    requests: int
    skipped: tuple[int, ...] = ()
    """Byte positions in the input of lines in the range that are no requests."""


def split(index: LineIndex, chunk_requests: int) -> list[ChunkRange]:
    """Cut the input into chunks of `chunk_requests` requests, the last one the rest."""
    assert chunk_requests > 0, "a chunk has requests"
    if not len(index.starts):
        return []
    starts = index.starts[::chunk_requests].tolist()
    ends = [*starts[1:], index.end]
    cuts = np.searchsorted(index.skipped, np.array([*starts, index.end], dtype=np.uint64)).tolist()
    total = len(index.starts)
    return [
        ChunkRange(
            index=number,
            byte_start=start,
            byte_end=end,
            first_request=number * chunk_requests,
            requests=min(chunk_requests, total - number * chunk_requests),
            skipped=tuple(index.skipped[cuts[number] : cuts[number + 1]].tolist()),
        )
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def chunk_size(requests: int, *, requests_per_s: float, replicas: int) -> int:
    """Requests of one chunk: about 15 s of the slowest replica, fewer where replicas would go without.

    Args:
        requests: of the whole job.
        requests_per_s: predicted, of the slowest planned replica.
        replicas: planned.
    """
    by_time = math.ceil(max(requests_per_s, 0.0) * CHUNK_S)
    by_share = math.ceil(requests / (max(replicas, 1) * CHUNKS_PER_REPLICA))
    return max(1, min(by_time, by_share, MAX_CHUNK_REQUESTS))

"""The chunks that this runner holds, from the lease to the completion, and how far each is."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

import structlog

from tandemn.fleet import remains
from tandemn.protocol.replicas import ChunkLease, ChunkProgress, ReleaseRequest
from tandemn.runner.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tandemn.protocol.replicas import UploadTarget

_log = structlog.get_logger()


class Phase(IntEnum):
    LEASED = 0
    """Ahead of its time: an idle peer may take it back."""
    BEGUN = 1
    COMPUTED = 2
    """Every request has ended; the objects are being stored."""


class HeldChunk:
    """One lease, the answers so far, and whether it still counts."""

    def __init__(self, lease: ChunkLease) -> None:
        self.lease = lease
        self.phase = Phase.LEASED
        self.is_dropped = False
        self.read = 0
        """Requests that were found in the input so far."""
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.next_part = 0
        self.spare: UploadTarget | None = None
        """Where one more part can be stored without asking the control plane, should it fall silent."""
        self.recomputed: int | None = None
        """Answers that earlier holders had computed and lost; None until their parts have been read."""
        self._spool: Spool | None = None

    @property
    def number(self) -> int:
        return self.lease.chunk

    @property
    def claim(self) -> ReleaseRequest:
        """Name the chunk and its lease to the control plane."""
        return ReleaseRequest(chunk=self.lease.chunk, token=self.lease.token)

    @property
    def spool(self) -> Spool:
        assert self._spool is not None, "the chunk has not begun"
        return self._spool

    @property
    def unsent(self) -> int:
        """Requests that the feeder has not got yet."""
        return max(0, self.lease.requests - self.read) if self.phase < Phase.COMPUTED else 0

    @property
    def has_all(self) -> bool:
        return self._spool is not None and self._spool.count == self.lease.requests

    def begin(self, folder: Path) -> None:
        self._spool = Spool(folder / f"{self.lease.chunk}-{self.lease.token}.part", self.lease.requests)
        self.phase = Phase.BEGUN

    def took_over(self) -> None:
        """Say that what earlier holders stored has been read: the rest of what they had is computed again."""
        # What they stored since their last report is more than was reported, and nothing was lost of it.
        self.recomputed = self.lease.recomputed + max(0, self.lease.computed - self.spool.count)
        self.spool.publish(remains.file_name(self.number, self.lease.token, self.recomputed))

    def progress(self) -> ChunkProgress:
        spool = self._spool
        return ChunkProgress(
            chunk=self.lease.chunk,
            token=self.lease.token,
            completed=spool.answers if spool else 0,
            failed=spool.errors if spool else 0,
            recomputed=self.recomputed,
        )

    def close(self) -> None:
        """Forget the answers and free their space."""
        if self._spool is not None:
            self._spool.close()


class Chunks:
    """All chunks that are held, in the order of their leases."""

    def __init__(self) -> None:
        self._held: dict[int, HeldChunk] = {}
        self.lost = 0
        """Leases that were taken away, since the start."""
        self._requests = 0
        self._leases = 0
        self.changed = asyncio.Event()
        """Set whenever a chunk comes, begins, is computed or goes."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[HeldChunk]:
        return iter(list(self._held.values()))

    def get(self, number: int) -> HeldChunk | None:
        return self._held.get(number)

    @property
    def requests_per_chunk(self) -> float:
        """Mean of the leases seen so far; 0 before the first."""
        return self._requests / self._leases if self._leases else 0.0

    @property
    def unsent(self) -> int:
        return sum(chunk.unsent for chunk in self._held.values())

    def count(self, phase: Phase) -> int:
        return sum(chunk.phase is phase for chunk in self._held.values())

    def next_to_begin(self) -> HeldChunk | None:
        """Give the chunk leased longest ago that has not begun."""
        return next((chunk for chunk in self._held.values() if chunk.phase is Phase.LEASED), None)

    def add(self, lease: ChunkLease) -> None:
        """Hold a new lease; an older one of the same chunk is void by it."""
        if older := self._held.get(lease.chunk):
            self.drop(older, why="leased anew")
        self._held[lease.chunk] = HeldChunk(lease)
        self._leases += 1
        self._requests += lease.requests
        self.changed.set()

    def drop(self, chunk: HeldChunk, *, why: str) -> None:
        """Stop working on a chunk whose lease is gone; what is under way for it comes to nothing."""
        if not chunk.is_dropped:
            self.lost += 1
            _log.info("chunk dropped", chunk=chunk.number, token=chunk.lease.token, why=why)
        self.forget(chunk)

    def forget(self, chunk: HeldChunk) -> None:
        """Let go of a chunk that is completed, released or lost."""
        chunk.is_dropped = True
        if self._held.get(chunk.number) is chunk:
            del self._held[chunk.number]
        chunk.close()
        self.changed.set()

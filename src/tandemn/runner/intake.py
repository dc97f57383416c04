"""Turns held chunks into requests, one chunk after the other, as fast as the feeder takes them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog

from tandemn.batch import answers, request_line
from tandemn.errors import Broken, InvalidInput, LeaseLost, Retryable, Superseded
from tandemn.runner.block_reader import read_blocks
from tandemn.runner.feeder import Request
from tandemn.runner.record import keep_conviction, keep_stored
from tandemn.runner.retry import patiently
from tandemn.runner.strikes import Treatment, treatment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tandemn.batch.request_line import RequestLine
    from tandemn.client import ReplicaClient
    from tandemn.protocol.replicas import Assignment, PartRef
    from tandemn.runner.chunks import Chunks, HeldChunk
    from tandemn.runner.feeder import Feeder

_log = structlog.get_logger()

#: Requests handed to the feeder at a time.
BATCH = 64


class Intake:
    """Begins chunks, takes over what earlier holders stored, and feeds the rest."""

    def __init__(
        self,
        *,
        client: ReplicaClient,
        assignment: Assignment,
        chunks: Chunks,
        feeder: Feeder,
        folder: Path,
        on_line: Callable[[HeldChunk], None],
    ) -> None:
        """Args: on_line: called when a chunk got lines other than by the feeder."""
        self._client = client
        self._assignment = assignment
        self._chunks = chunks
        self._feeder = feeder
        self._folder = folder
        self._on_line = on_line

    async def run(self) -> None:
        """Work until cancelled. Raises Broken where the input is not what the lease says."""
        while True:
            chunk = self._chunks.next_to_begin()
            if chunk is None:
                self._chunks.changed.clear()
                await self._chunks.changed.wait()
                continue
            await self._feeder.room()
            if chunk.is_dropped:
                continue
            try:
                await self._begin(chunk)
                await self._feed(chunk)
            except Superseded as exc:
                self._chunks.drop(chunk, why=exc.code)
            except InvalidInput as exc:
                raise Broken(
                    f"chunk {chunk.number} of the input cannot be read: {exc.message}",
                    code="input_unreadable",
                ) from exc

    async def _begin(self, chunk: HeldChunk) -> None:
        await patiently(lambda: self._client.begin(chunk.claim), "begin")
        _still_held(chunk)
        chunk.begin(self._folder)
        self._chunks.changed.set()
        for part in chunk.lease.parts:
            try:
                await self._take_over(chunk, part)
            except InvalidInput as exc:
                _log.warning("part not read", chunk=chunk.number, part=part.name, error=exc.message)
        chunk.took_over()
        # Earlier holders' parts stay stored: only what is appended from here on is ours to store.
        chunk.spool.stored = chunk.spool.size

    async def _take_over(self, chunk: HeldChunk, part: PartRef) -> None:
        """Keep the answers of one part; a part that cannot be read is computed again."""

        async def fetch(start: int, end: int) -> bytes:
            return await self._fetch(chunk, part.url, start, end)

        rest = b""
        async for block in read_blocks(fetch, 0, part.size):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            for answer in answers.decode_segment(whole + newline):
                keep_stored(chunk, answer)

    async def _feed(self, chunk: HeldChunk) -> None:
        lease, assignment = chunk.lease, self._assignment

        async def fetch(start: int, end: int) -> bytes:
            return await self._fetch(chunk, lease.input_url, start, end)

        lines = request_line.iter_requests(
            read_blocks(fetch, lease.byte_start, lease.byte_end),
            byte_start=lease.byte_start,
            requests=lease.requests,
            skipped=frozenset(lease.skipped),
            model=assignment.model,
            max_output_tokens=assignment.max_output_tokens,
        )
        async with contextlib.aclosing(lines):
            batch: list[Request] = []
            async for line in lines:
                chunk.read = line.index + 1
                if request := self._request(chunk, line):
                    batch.append(request)
                if len(batch) == BATCH:
                    self._feeder.put(batch)
                    batch = []
                    await self._feeder.room()
                    _still_held(chunk)
        self._feeder.put(batch)
        # Where all was stored or convicted before, no result will say that the chunk is done.
        self._on_line(chunk)

    def _request(self, chunk: HeldChunk, line: RequestLine) -> Request | None:
        """Make one request; None where its line is there already, or is written here."""
        if line.index >= chunk.lease.requests or chunk.spool.has(line.index):
            return None
        strikes = chunk.lease.strikes.get(line.index, 0)
        request = Request(
            owner=chunk, index=line.index, custom_id=line.custom_id, body=line.body, strikes=strikes
        )
        if treatment(strikes) is Treatment.CONVICTED:
            keep_conviction(self._assignment.job_id, chunk, request)
            return None
        return request

    async def _fetch(self, chunk: HeldChunk, url: str, start: int, end: int) -> bytes:
        async def once() -> bytes:
            _still_held(chunk)
            block = await self._client.get_range(url, start, end)
            if len(block) != end - start:
                raise Retryable(f"{len(block)} bytes came where {end - start} were asked for")
            return block

        return await patiently(once, "read")


def _still_held(chunk: HeldChunk) -> None:
    if chunk.is_dropped:
        raise LeaseLost(f"chunk {chunk.number} is not held any more")

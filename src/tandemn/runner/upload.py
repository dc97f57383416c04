"""Stores answers: parts of unfinished chunks every few seconds, and the finished chunk's objects, then completes it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from tandemn.errors import Broken, InvalidInput, LeaseLost, Retryable, StoreUnavailable, Superseded
from tandemn.protocol.replicas import CompleteRequest, UploadRequest
from tandemn.runner.chunks import Phase
from tandemn.runner.retry import patiently
from tandemn.runner.spool import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tandemn.client import ReplicaClient
    from tandemn.protocol.replicas import UploadTarget
    from tandemn.runner.chunks import Chunks, HeldChunk

#: A store that is full for longer than this ends the runner: computing on would be for nothing.
STORE_FULL_S = 60.0

STORE_FULL = "store_full"

#: Finished chunks that are stored at the same time.
_AT_ONCE = 4

_log = structlog.get_logger()


class Uploader:
    """One per runner; `on_broken` hears of what cannot be stored at all."""

    def __init__(
        self,
        client: ReplicaClient,
        chunks: Chunks,
        *,
        on_broken: Callable[[Broken], None],
        store_full_s: float = STORE_FULL_S,
    ) -> None:
        self._client = client
        self._chunks = chunks
        self._on_broken = on_broken
        self._store_full_s = store_full_s
        self._full_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    @property
    def note(self) -> str | None:
        """What it waits for, for the heartbeat."""
        return "the store is full" if self._full_since is not None else None

    async def run(self, flush_s: float) -> None:
        """Store parts every `flush_s`, until cancelled."""
        while True:
            await asyncio.sleep(flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Store what was answered since the last time; what fails is part of the next try."""
        for chunk in self._chunks:
            if chunk.phase is not Phase.BEGUN or chunk.spool.size == chunk.spool.stored:
                continue
            try:
                await self._store_part(chunk)
            except Superseded as exc:
                self._chunks.drop(chunk, why=exc.code)
            except (Retryable, InvalidInput) as exc:
                self._note_fault(exc)
                _log.info("part not stored", chunk=chunk.number, error=exc.message, code=exc.code)

    async def _store_part(self, chunk: HeldChunk) -> None:
        target = await self._part_target(chunk)
        if chunk.is_dropped:
            return
        await self._put_part(chunk, target)
        if chunk.spare is None and urlsplit(target.url).scheme:
            # The store is reached without the control plane: what is computed while that one is silent need not be lost.
            with suppress(Retryable):
                chunk.spare = await self._part_target(chunk)

    async def _part_target(self, chunk: HeldChunk) -> UploadTarget:
        # A number is used once: a try that seemed to fail may have stored its bytes all the same.
        number, chunk.next_part = chunk.next_part, chunk.next_part + 1
        request = UploadRequest(chunk=chunk.number, token=chunk.lease.token, part=number)
        return (await self._client.upload_target(request)).answers

    async def _put_part(self, chunk: HeldChunk, target: UploadTarget) -> None:
        spool = chunk.spool
        start, end = spool.stored, spool.size

        def blocks() -> Iterator[bytes]:
            for at in range(start, end, BLOCK_BYTES):
                yield spool.read(at, min(at + BLOCK_BYTES, end))

        await self._put(target, blocks, end - start)
        spool.stored = end
        self._full_since = None

    def finish(self, chunk: HeldChunk) -> None:
        """Store a computed chunk and complete it, beside everything else."""
        chunk.phase = Phase.COMPUTED
        self._chunks.changed.set()
        task = asyncio.create_task(self._finish(chunk), name=f"finish-{chunk.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, chunk: HeldChunk) -> None:
        try:
            async with self._turn:
                await patiently(lambda: self._store_whole(chunk), "store", on_fault=self._note_fault)
                spool = chunk.spool
                request = CompleteRequest(
                    chunk=chunk.number,
                    token=chunk.lease.token,
                    completed=spool.answers,
                    failed=spool.errors,
                    recomputed=chunk.recomputed or 0,
                    prompt_tokens=chunk.prompt_tokens,
                    output_tokens=chunk.output_tokens,
                )
                await patiently(lambda: self._client.complete(request), "complete")
        except Superseded as exc:
            self._chunks.drop(chunk, why=exc.code)
        except InvalidInput as exc:
            self._on_broken(Broken(f"chunk {chunk.number} cannot be stored: {exc.message}", code=exc.code))
        except Broken as exc:
            self._on_broken(exc)
        else:
            _log.debug("chunk completed", chunk=chunk.number, requests=chunk.lease.requests)
            self._chunks.forget(chunk)

    async def _store_whole(self, chunk: HeldChunk) -> None:
        if chunk.is_dropped:
            raise LeaseLost(f"chunk {chunk.number} is not held any more")
        spool = chunk.spool
        target = await self._client.upload_target(UploadRequest(chunk=chunk.number, token=chunk.lease.token))
        await self._put(target.answers, lambda: spool.ordered(errors=False), spool.object_size(errors=False))
        if spool.errors and target.errors is not None:
            await self._put(target.errors, lambda: spool.ordered(errors=True), spool.object_size(errors=True))
        self._full_since = None

    async def _put(self, target: UploadTarget, blocks: Callable[[], Iterator[bytes]], size: int) -> None:
        if size <= BLOCK_BYTES:
            await self._client.put(target.url, b"".join(blocks()), size)
        else:
            await self._client.put(target.url, _in_turn(blocks()), size)

    def _note_fault(self, fault: Exception) -> None:
        """Count how long the store has been full; raise where that is too long."""
        if not (isinstance(fault, StoreUnavailable) and fault.code == STORE_FULL):
            return
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since >= self._store_full_s:
            broken = Broken(f"the store has been full for {now - self._full_since:.0f} s", code=STORE_FULL)
            self._on_broken(broken)

    async def store_unheard(self) -> None:
        """Store what every chunk has, as a last part each, without the control plane, which is silent.

        Whoever is given the chunk next finds it in the store. Where the store is reached through the control plane,
        nothing can be done.
        """
        self._drop_tasks()
        for chunk in self._chunks:
            if chunk.phase is Phase.LEASED or chunk.spare is None or chunk.spool.size == chunk.spool.stored:
                continue
            target, chunk.spare = chunk.spare, None
            try:
                await self._put_part(chunk, target)
            except (Retryable, InvalidInput) as exc:
                _log.warning("answers not stored", chunk=chunk.number, error=exc.message, code=exc.code)
            else:
                _log.info("answers stored unheard", chunk=chunk.number)

    async def finish_up(self, timeout_s: float) -> None:
        """Wait a while for the chunks that are being stored; what is not done then is stored as parts."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        await asyncio.gather(*self._drop_tasks(), return_exceptions=True)
        for chunk in self._chunks:
            if chunk.phase is Phase.COMPUTED:
                chunk.phase = Phase.BEGUN
        await self.flush()

    def _drop_tasks(self) -> list[asyncio.Task[None]]:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks


async def _in_turn(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while block := await asyncio.to_thread(next, blocks, b""):
        yield block

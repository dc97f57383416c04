"""Reads a byte range of an object block by block, one block ahead: never a whole chunk in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Fetch = Callable[[int, int], Awaitable[bytes]]

#: Of one ranged read.
BLOCK_BYTES = 1 << 20


async def read_blocks(
    fetch: Fetch, start: int, end: int, *, block_bytes: int = BLOCK_BYTES
) -> AsyncGenerator[bytes, None]:
    """Yield bytes [start, end) in blocks; the next one is fetched while the caller works on the present one.

    Args:
        fetch: reads bytes [a, b) of the object, all of them, or raises.
        start: first byte.
        end: one past the last byte.
        block_bytes: how much to read at a time.
    """
    ahead: asyncio.Future[bytes] | None = None
    try:
        for at in range(start, end, block_bytes):
            block = await (ahead or fetch(at, min(at + block_bytes, end)))
            following = at + block_bytes
            ahead = None
            if following < end:
                ahead = asyncio.ensure_future(fetch(following, min(following + block_bytes, end)))
            yield block
    finally:
        if ahead is not None:
            ahead.cancel()

"""Work that must not go on behind the back of whoever was cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

_Result = TypeVar("_Result")


async def settled(work: Awaitable[_Result], *, patience_s: float | None = None) -> _Result:
    """Await `work`; where this task is cancelled, let it end first.

    So nothing that it uses is freed under it, and nothing that a thread still writes comes after what is done next.

    Args:
        work: a call in a thread, mostly, which cannot be cancelled.
        patience_s: longest wait for it once this task is cancelled, in seconds; None: until it ends.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_see)
        await asyncio.wait([future], timeout=patience_s)
        raise


def _see(future: asyncio.Future[_Result]) -> None:
    """Take its error as seen: the cancellation is what the caller hears of."""
    if not future.cancelled():
        future.exception()

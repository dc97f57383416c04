"""Touching a disk or a process of this machine from the event loop: in a thread, for either can be slow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(patience_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a thread.

    Who is cancelled meanwhile waits until it returns, for so many seconds at most: what a thread still writes would
    otherwise come after whatever is done next, such as an order after it was taken back.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # Nobody hears of its error any more.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait([work], timeout=patience_s)
        raise

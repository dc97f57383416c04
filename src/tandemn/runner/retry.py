"""Calls to the control plane that are tried again while it is away."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

import structlog

from tandemn.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_Answer = TypeVar("_Answer")

_FIRST_S = 0.2
MAX_S = 5.0

_log = structlog.get_logger()


async def patiently(
    call: Callable[[], Awaitable[_Answer]],
    what: str,
    *,
    on_fault: Callable[[Retryable], None] | None = None,
    max_s: float = MAX_S,
) -> _Answer:
    """Call until there is an answer, or an error other than Retryable, which is raised.

    There is no limit of tries: whoever waits ends with the runner, which ends itself when its control
    plane is silent for too long.

    Args:
        call: makes one try.
        what: names it in the log.
        on_fault: told of each failed try; may raise to end the tries.
        max_s: longest wait between two tries.
    """
    wait = _FIRST_S
    while True:
        try:
            return await call()
        except Retryable as exc:
            if on_fault:
                on_fault(exc)
            _log.info("trying again", call=what, wait_s=round(wait, 2), error=exc.message, code=exc.code)
        # Spread, so that a fleet does not come back all at once after a restart.
        await asyncio.sleep(wait * random.uniform(0.7, 1.3))  # noqa: S311 - no secret
        wait = min(2 * wait, max_s)

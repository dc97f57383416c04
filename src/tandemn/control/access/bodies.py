"""Request bodies in bounds: so large, so slow, and no more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.errors import TooLarge, TooSlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope

#: A JSON body; the largest that our own clients send (a list of a thousand replicas) is a tenth of it.
JSON_BYTES = 1 << 20
#: How long a JSON body may take to arrive.
JSON_S = 30.0
#: How long an upload may stand still.
STALL_S = 60.0
#: What an upload must bring a second, on the average since it began, once it is older than `STALL_S`.
SLOWEST_BYTES_PER_S = 1024


class Gone(Exception):
    """The client went away before its request was whole."""


def check_length(scope: Scope, limit: int) -> None:
    """Refuse a body that says itself that it is too large, before any of it is read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise _too_large(limit)


async def read_whole(receive: Receive, limit: int) -> Receive:
    """Read a small body, and return what gives it once more.

    Raises:
        TooLarge, TooSlow: it is.
        Gone: the client is.
    """
    blocks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(JSON_S):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                blocks.append(message.get("body", b""))
                size += len(blocks[-1])
                if size > limit:
                    raise _too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError as exc:
        raise TooSlow(f"the request did not arrive within {JSON_S:.0f} s") from exc
    whole: Message | None = {"type": "http.request", "body": b"".join(blocks), "more_body": False}

    async def again() -> Message:
        nonlocal whole
        if whole is None:
            return await receive()
        message, whole = whole, None
        return message

    return again


def watched(receive: Receive, limit: int, clock: Callable[[], float]) -> Receive:
    """Pass an upload on as it comes; what is too large or too slow raises in whoever reads it."""
    began = clock()
    size = 0

    async def next_block() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout(STALL_S):
                message = await receive()
        except TimeoutError as exc:
            raise TooSlow(f"no byte of the upload came for {STALL_S:.0f} s") from exc
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        age = clock() - began
        if message.get("more_body") and age > STALL_S and size < age * SLOWEST_BYTES_PER_S:
            raise TooSlow(f"the upload brings less than {SLOWEST_BYTES_PER_S} bytes a second")
        return message

    return next_block


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request is larger than {limit} bytes")

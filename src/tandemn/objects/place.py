"""What a folder and a bucket have in common: the seam behind `ObjectStore`, and the words of its errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

from tandemn.errors import InvalidInput, NotFound, StoreUnavailable, TandemnError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Sequence
    from pathlib import Path

_Result = TypeVar("_Result")

#: Bytes of one block of a stream: large enough that a hop to a thread costs nothing beside it.
BLOCK_BYTES = 1024 * 1024


class Place(Protocol):
    """Where objects lie; names are checked already, and errors are of the tree in `tandemn.errors`."""

    @property
    def url(self) -> str: ...

    @property
    def local_root(self) -> Path | None: ...

    async def put(self, name: str, data: bytes) -> None: ...

    async def put_stream(self, name: str, blocks: AsyncIterable[bytes]) -> int: ...

    async def get_range(self, name: str, start: int, end: int | None) -> bytes: ...

    def stream(self, name: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]: ...

    async def size(self, name: str) -> int: ...

    def list(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]: ...

    async def delete(self, name: str) -> None: ...

    async def delete_prefix(self, prefix: str) -> None: ...

    async def concat(self, dest: str, names: Sequence[str]) -> int: ...

    async def sign(self, method: str, name: str, expires_s: float) -> str | None: ...


async def settled(work: Awaitable[_Result]) -> _Result:
    """Await `work`; where this task is cancelled, let it end first, so that nothing it uses is freed under it."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: the cancellation is what the caller hears of
        raise


def object_not_found(url: str, name: str) -> NotFound:
    return NotFound(f"there is no object {name} in {url}", code="object_not_found", object_id=name)


def objects_denied(url: str, name: str, cause: str) -> InvalidInput:
    return InvalidInput(
        f"access to {name or 'the objects'} in {url} is denied ({cause})",
        code="objects_denied",
        next_step="check the credentials and that they may read, write, list and delete there",
        object_id=name or None,
    )


def store_full(url: str, name: str, cause: str) -> TandemnError:
    return StoreUnavailable(
        f"the object store {url} is full: {name} could not be written ({cause})",
        code="store_full",
        next_step="free some space or raise the quota",
        object_id=name or None,
    )


def store_unavailable(url: str, name: str, cause: str) -> TandemnError:
    return StoreUnavailable(
        f"the object store {url} failed on {name or 'a listing'} ({cause})", object_id=name or None
    )


def invalid_name(name: str, cause: str) -> InvalidInput:
    return InvalidInput(
        f"{name!r} cannot name an object: {cause}", code="invalid_object_name", object_id=name
    )

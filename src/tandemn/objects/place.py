"""What a folder and a bucket have in common: the seam behind `ObjectStore`, and the words of its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tandemn.errors import InvalidInput, NotFound, StoreUnavailable, TandemnError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence
    from pathlib import Path

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

"""Objects in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure, through obstore.

Reads are ranges of a few MiB, some of them ahead of their use: each is a request of bounded length that can be
tried again, however slow the reader is. Writes are multipart uploads with a few parts in flight.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit, urlunsplit

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from tandemn import settings
from tandemn.errors import Conflict, InvalidInput, NotFound, TandemnError
from tandemn.objects.place import (
    BLOCK_BYTES,
    invalid_name,
    object_not_found,
    objects_denied,
    store_full,
    store_unavailable,
)
from tandemn.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable, Iterator, Sequence
    from pathlib import Path

    from obstore.store import AzureStore, GCSStore, S3Store

#: Bytes of one read request.
READ_BYTES = 4 * 1024 * 1024
#: Read requests of one stream that may be under way or wait for their reader.
READ_AHEAD = 4
#: Bytes of one part of an upload: 10,000 parts, S3's limit, are 80 GiB.
PART_BYTES = 8 * 1024 * 1024
#: Parts of one upload in flight.
PARTS_IN_FLIGHT = 4
#: Largest object that S3 copies in one request.
COPY_LIMIT_BYTES = 5 * 1024**3
#: Names of one page of a listing and of one bulk delete: S3's limit.
LIST_PAGE = 1000
#: How often and how long (seconds) obstore tries again: a batch job retries above this too.
RETRIES = 5
RETRY_S = 30.0

_DENIED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
)
_FULL_CODES = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "ServiceQuotaExceeded", "EntityTooLarge"}
)
_FULL_STATUS = 507
#: Where clients ask for credentials when they were given none.
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


class Bucket:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit(
            (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")
        )
        endpoint = settings.objects_endpoint() or ""
        try:
            self._store = cast(
                "S3Store | GCSStore | AzureStore",
                from_url(
                    self._url,
                    client_options={"allow_http": endpoint.startswith("http://")},
                    retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
                ),
            )
        except (BaseError, ValueError) as exc:
            raise InvalidInput(
                f"{self._url!r} is no place for objects ({_cause(exc)})",
                code="invalid_objects_url",
                next_step="use s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            ) from exc

    @property
    def url(self) -> str:
        return self._url

    @property
    def local_root(self) -> Path | None:
        return None

    async def put(self, name: str, data: bytes) -> None:
        with self._translated(name):
            await settled(obstore.put_async(self._store, name, data, use_multipart=False))

    async def put_stream(self, name: str, blocks: AsyncIterable[bytes]) -> int:
        writer = obstore.open_writer_async(
            self._store, name, buffer_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
        )
        size = 0
        try:
            async for block in blocks:
                with self._translated(name):
                    await settled(writer.write(block))
                size += len(block)
            with self._translated(name):
                await settled(writer.close())  # where it fails, obstore aborts the upload itself
        except BaseException as exc:
            # Leaving the writer with an error aborts its upload; an OSError says that it was closed already.
            with contextlib.suppress(BaseError, OSError):
                await settled(writer.__aexit__(type(exc), exc, exc.__traceback__))
            raise
        return size

    async def get_range(self, name: str, start: int, end: int | None) -> bytes:
        pieces = [block async for block in self.stream(name, start, end)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def stream(self, name: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        with self._translated(name):
            meta = await obstore.head_async(self._store, name)
        stop = meta["size"] if end is None else min(end, meta["size"])
        ranges = ((at, min(at + READ_BYTES, stop)) for at in range(start, stop, READ_BYTES))
        reads = (self._read(name, low, high, meta["e_tag"]) for low, high in ranges)
        async with contextlib.aclosing(_ahead(reads, READ_AHEAD)) as pieces:
            async for piece in pieces:
                for at in range(0, len(piece), BLOCK_BYTES):
                    yield piece[at : at + BLOCK_BYTES]

    async def size(self, name: str) -> int:
        with self._translated(name):
            return (await obstore.head_async(self._store, name))["size"]

    async def list(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        with self._translated(prefix):
            async for page in obstore.list(self._store, prefix or None, chunk_size=LIST_PAGE):
                for entry in page:
                    yield entry["path"], entry["size"]

    async def delete(self, name: str) -> None:
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            await settled(obstore.delete_async(self._store, name))

    async def delete_prefix(self, prefix: str) -> None:
        with self._translated(prefix):
            async for page in obstore.list(self._store, prefix, chunk_size=LIST_PAGE):
                names = [entry["path"] for entry in page]
                with contextlib.suppress(FileNotFoundError):
                    await settled(obstore.delete_async(self._store, names))

    async def concat(self, dest: str, names: Sequence[str]) -> int:
        if len(names) == 1 and (size := await self.size(names[0])) < COPY_LIMIT_BYTES:
            with self._translated(names[0]):
                await settled(obstore.copy_async(self._store, names[0], dest))
            return size
        return await self.put_stream(dest, self._joined(names))

    async def sign(self, method: str, name: str, expires_s: float) -> str | None:
        verb = cast("Literal['GET', 'PUT']", method)
        try:
            return await obstore.sign_async(self._store, verb, name, timedelta(seconds=expires_s))
        except (BaseError, OSError, ValueError):
            return None  # such credentials sign nothing: the data goes through the control plane instead

    async def _joined(self, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """All bytes of the objects; the next small ones are read while this one is written."""
        heads = (self._head(name) for name in names)
        async with contextlib.aclosing(_ahead(heads, READ_AHEAD)) as opened:
            async for name, size, head in opened:
                yield head
                if size > len(head):
                    async for block in self.stream(name, len(head), size):
                        yield block

    async def _head(self, name: str) -> tuple[str, int, bytes]:
        with self._translated(name):
            meta = await obstore.head_async(self._store, name)
        first = min(READ_BYTES, meta["size"])
        return name, meta["size"], await self._read(name, 0, first, meta["e_tag"])

    async def _read(self, name: str, start: int, end: int, e_tag: str | None) -> bytes:
        if start == end:
            return b""  # a range of nothing is an error to most stores
        with self._translated(name):
            answer = await obstore.get_async(
                self._store, name, options={"range": (start, end), "if_match": e_tag}
            )
            return bytes(await answer.bytes_async())

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except TandemnError:
            raise
        except (BaseError, OSError, ValueError) as exc:
            raise _translate(exc, self._url, name) from exc


async def _ahead(work: Iterable[Awaitable[Any]], limit: int) -> AsyncGenerator[Any, None]:
    """Results in order, with up to `limit` under way; what is not wanted any more is cancelled."""
    waiting: collections.deque[asyncio.Future[Any]] = collections.deque()
    remaining = iter(work)
    try:
        while True:
            while len(waiting) < limit and (awaitable := next(remaining, None)) is not None:
                waiting.append(asyncio.ensure_future(awaitable))
            if not waiting:
                return
            yield await waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _translate(exc: Exception, url: str, name: str) -> TandemnError:  # noqa: PLR0911 - one return a kind of fault
    text = str(exc)
    cause = _cause(exc)
    if cause == "NoSuchBucket" or "ContainerNotFound" in text:
        return NotFound(
            f"there is no bucket for {url}", code="bucket_not_found", next_step="create it, or name another"
        )
    if isinstance(exc, FileNotFoundError):
        return object_not_found(url, name)
    if isinstance(exc, PreconditionError):
        return Conflict(
            f"{name} in {url} was replaced while it was read", code="object_changed", object_id=name
        )
    if any(host in text for host in _METADATA_HOSTS):
        return objects_denied(url, name, "no credentials were found")
    if (
        isinstance(exc, PermissionDeniedError | UnauthenticatedError)
        or cause in _DENIED_CODES
        or re.search(r"status code: 40[13]", text)
    ):
        return objects_denied(url, name, cause)
    if cause in _FULL_CODES or f"status code: {_FULL_STATUS}" in text:
        return store_full(url, name, cause)
    if isinstance(exc, NotSupportedError):
        return InvalidInput(f"{url} cannot do this ({cause})", code="objects_unsupported")
    if isinstance(exc, ValueError) and "parse path" in text:
        return invalid_name(name, "the store does not take it")
    return store_unavailable(url, name, cause)


def _cause(exc: Exception) -> str:
    """Name the fault without quoting the vendor's message, which may hold an access key."""
    text = str(exc)
    # As S3 writes it; and as obstore repeats it of one of the objects of a bulk delete.
    if code := re.search(r"<Code>(\w{1,60})</Code>", text) or re.search(r'\bcode: "(\w{1,60})"', text):
        return code[1]
    if status := re.search(r"status code: (\d{3})", text):
        return f"HTTP {status[1]}"
    if reason := re.search(r"HTTP error: ([a-z ]{1,60})", text):
        return reason[1].strip()
    return type(exc).__name__

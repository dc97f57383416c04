"""The one door to objects: a folder or a bucket, chosen by its URL, with the same promises for both.

An object becomes visible whole or not at all, and once a write returns it survives a loss of power: the
database names objects, so an object must be there before its name is. A write that fails or is cancelled
leaves nothing behind, no open multipart upload either. Memory is bounded whatever the size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput, NotFound
from tandemn.objects.folder import STAGING, Folder
from tandemn.objects.place import invalid_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence

    from tandemn.objects.place import Place

#: Longest name in bytes: S3's limit, less room for the store's own prefix.
MAX_NAME_BYTES = 900

_BUCKET_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"})


class ObjectStore:
    """Objects by name, below one URL; every call raises StoreUnavailable where the store fails.

    Raises (each call, beside its own):
        NotFound: `object_not_found`.
        InvalidInput: `objects_denied`, or `invalid_object_name`.
        StoreUnavailable: `store_full` where there is no room, else `store_unavailable`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    @classmethod
    def open(cls, where: str | Path) -> ObjectStore:
        """Open a folder (made if missing), or a bucket by `s3://`, `gs://` or `az://` URL; no request is sent.

        Raises:
            InvalidInput: `invalid_objects_url`.
        """
        text = str(where)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(Folder(Path(text)))
        if scheme == "file":
            return cls(Folder(Path(rest)))
        if scheme not in _BUCKET_SCHEMES or not rest.strip("/"):
            raise InvalidInput(
                f"{text!r} is no place for objects",
                code="invalid_objects_url",
                next_step="use s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or a folder",
            )
        # Here, not above: a machine that uses only folders need not load the cloud clients.
        from tandemn.objects.bucket import Bucket  # noqa: PLC0415

        return cls(Bucket(text))

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return self._place.url

    @property
    def local_root(self) -> Path | None:
        """The folder, where it is one: an object is the file of its name below it."""
        return self._place.local_root

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`, replacing what has the name."""
        await self._place.put(check_name(name), data)

    async def put_stream(self, name: str, blocks: AsyncIterable[bytes]) -> int:
        """Store all blocks as one object and return its size; what `blocks` raises is passed on."""
        return await self._place.put_stream(check_name(name), blocks)

    async def get(self, name: str) -> bytes:
        """Read a whole object, for small ones."""
        return await self._place.get_range(check_name(name), 0, None)

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Read bytes `start` up to `end` (exclusive), fewer where the object ends earlier."""
        assert 0 <= start <= end, "a range runs forwards"
        return await self._place.get_range(check_name(name), start, end)

    def stream(self, name: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Read bytes `start` up to `end` (exclusive; None: to its end) as blocks of at most 1 MiB.

        Raises:
            Conflict: `object_changed` where another object took the name meanwhile (buckets; a folder goes
                on with the one that was opened).
        """
        assert start >= 0, "a range runs forwards"
        return self._place.stream(check_name(name), start, end)

    async def size(self, name: str) -> int:
        """Bytes of the object."""
        return await self._place.size(check_name(name))

    async def exists(self, name: str) -> bool:
        try:
            await self._place.size(check_name(name))
        except NotFound as exc:
            if exc.code == "object_not_found":
                return False
            raise
        return True

    def list(self, prefix: str = "") -> AsyncGenerator[tuple[str, int], None]:
        """Name and size of every object below `prefix` (`a` means `a/…`), in the order of their names."""
        return self._place.list(check_name(prefix.rstrip("/")) if prefix else "")

    async def delete(self, name: str) -> None:
        """Remove the object; it is no error where there is none."""
        await self._place.delete(check_name(name))

    async def delete_prefix(self, prefix: str) -> None:
        """Remove every object below `prefix` (`a` means `a/…`), and the folders emptied by it."""
        await self._place.delete_prefix(check_name(prefix.rstrip("/")))

    async def concat(self, dest: str, names: Sequence[str]) -> int:
        """Store the objects `names`, one after the other, as `dest`, and return its size in bytes.

        The store copies on its own side where it can: always in a folder, a single object in a bucket.
        """
        return await self._place.concat(check_name(dest), [check_name(name) for name in names])

    async def sign_get(self, name: str, expires_s: float) -> str | None:
        """A URL that reads the object without credentials for a while; None where the store signs nothing."""
        return await self._place.sign("GET", check_name(name), expires_s)

    async def sign_put(self, name: str, expires_s: float) -> str | None:
        """A URL that writes the object without credentials for a while; None where the store signs nothing."""
        return await self._place.sign("PUT", check_name(name), expires_s)


def check_name(name: str) -> str:
    """Return a name that stays below its store, and is the same in every kind of store.

    Raises:
        InvalidInput: `invalid_object_name`.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as exc:
        raise invalid_name(name, "it is not Unicode text") from exc
    if len(encoded) > MAX_NAME_BYTES:
        raise invalid_name(f"{name[:40]}…", f"it is longer than {MAX_NAME_BYTES} bytes")
    segments = name.split("/")
    if not all(segments) or "." in segments or ".." in segments:
        raise invalid_name(name, "it must be relative, without empty, `.` or `..` parts")
    if not name.isprintable():
        raise invalid_name(name, "it has control characters")
    if segments[0] == STAGING:
        raise invalid_name(name, f"{STAGING} is where unfinished objects lie")
    return name

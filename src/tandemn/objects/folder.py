"""Objects as files of a folder.

Plain system calls rather than a client library, for what those do not give: data on the disk before the
name appears, listing in order, and copies that never leave the kernel. A write goes to a file of its own in
`.staging`, is synced, then renamed; the lock on that file tells the next start whether its writer lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import stat
import threading
import time
from typing import TYPE_CHECKING, Self

from tandemn.errors import TandemnError
from tandemn.objects.place import (
    BLOCK_BYTES,
    invalid_name,
    object_not_found,
    objects_denied,
    settled,
    store_full,
    store_unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
    from pathlib import Path

#: Folder of unfinished objects, at the root of the store.
STAGING = ".staging"
#: Seconds after which an unlocked staging file belongs to nobody: a writer locks its file at once.
STAGING_ORPHAN_S = 60.0
#: Names that a listing reads at a time.
LIST_PAGE = 1000
#: Bytes copied in the kernel between two looks at whether the caller is still there.
COPY_BYTES = 64 * 1024 * 1024
#: Tries to write into a folder that another task is removing, and the other way round.
RACE_TRIES = 5

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: What says that the kernel cannot copy between these two files itself.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


class Folder:
    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        with self._translated(""):
            self._root.mkdir(parents=True, exist_ok=True)
            _remove_orphans(self._root / STAGING)

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def local_root(self) -> Path | None:
        return self._root

    async def put(self, name: str, data: bytes) -> None:
        def write() -> None:
            with self._translated(name), _Staged(self._root) as staged:
                staged.write(data)
                staged.commit(self._root / name)

        await settled(asyncio.to_thread(write))

    async def put_stream(self, name: str, blocks: AsyncIterable[bytes]) -> int:
        with self._translated(name):
            staged = _Staged(self._root)
        size = 0
        try:
            # Not the source's errors: only the folder's own are translated.
            async for block in gathered(blocks, BLOCK_BYTES):
                with self._translated(name):
                    await settled(asyncio.to_thread(staged.write, block))
                size += len(block)
            with self._translated(name):
                await settled(asyncio.to_thread(staged.commit, self._root / name))
        finally:
            staged.close()
        return size

    async def get_range(self, name: str, start: int, end: int | None) -> bytes:
        def read() -> bytes:
            with self._translated(name), self._opened(name) as fd:
                stop = os.fstat(fd).st_size if end is None else end
                return b"".join(_read_blocks(fd, start, stop))

        return await asyncio.to_thread(read)

    async def stream(self, name: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        with self._translated(name), self._opened(name) as fd:
            blocks = _read_blocks(fd, start, os.fstat(fd).st_size if end is None else end)
            while block := await settled(asyncio.to_thread(next, blocks, b"")):
                yield block

    async def size(self, name: str) -> int:
        with self._translated(name):
            found = (self._root / name).stat()
        if not stat.S_ISREG(found.st_mode):
            raise object_not_found(self.url, name)
        return found.st_size

    async def list(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        found = self._walk(prefix)
        while page := await asyncio.to_thread(lambda: list(itertools.islice(found, LIST_PAGE))):
            for entry in page:
                yield entry

    async def delete(self, name: str) -> None:
        with self._translated(name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self._root / name).unlink()

    async def delete_prefix(self, prefix: str) -> None:
        def remove() -> None:
            with self._translated(prefix):
                _remove_tree(self._root / prefix)

        await settled(asyncio.to_thread(remove))

    async def concat(self, dest: str, names: Sequence[str]) -> int:
        stop = threading.Event()

        def copy() -> int:
            with self._translated(dest), _Staged(self._root) as staged:
                for name in names:
                    with self._translated(name), self._opened(name) as fd:
                        _append(fd, staged.fd, stop)
                staged.commit(self._root / dest)
                return staged.size

        copying = asyncio.ensure_future(asyncio.to_thread(copy))
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([copying])
            copying.exception()
            raise

    async def sign(self, method: str, name: str, expires_s: float) -> str | None:
        del method, name, expires_s  # a folder has no URL that others could use
        return None

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise object_not_found(self.url, name)
            yield fd
        finally:
            os.close(fd)

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Walk in the order of whole names, which is the order of a bucket: `a-b` before `a/b`."""
        with self._translated(prefix):
            folder = self._root / prefix
            try:
                entries = [(e.name + "/" if e.is_dir() else e.name, e) for e in os.scandir(folder)]
            except (FileNotFoundError, NotADirectoryError):
                return
            for key, entry in sorted(entries, key=lambda pair: pair[0]):
                name = f"{prefix}/{entry.name}" if prefix else entry.name
                if key.endswith("/"):
                    if name != STAGING:
                        yield from self._walk(name)
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield name, entry.stat().st_size

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except TandemnError:
            raise
        except OSError as exc:
            cause = exc.strerror or type(exc).__name__
            if exc.errno in _MISSING:
                raise object_not_found(self.url, name) from exc
            if exc.errno in _DENIED:
                raise objects_denied(self.url, name, cause) from exc
            if exc.errno in _FULL:
                raise store_full(self.url, name, cause) from exc
            if exc.errno == errno.ENAMETOOLONG:
                raise invalid_name(name, "a part of it is too long for this folder") from exc
            raise store_unavailable(self.url, name, cause) from exc


class _Staged:
    """A file that has no name in the store yet; closing it without `commit` removes it."""

    def __init__(self, root: Path) -> None:
        folder = root / STAGING
        folder.mkdir(exist_ok=True)
        self._root = root
        self._path = folder / secrets.token_hex(8)
        self._is_committed = False
        self.fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def commit(self, dest: Path) -> None:
        """Put the data on the disk, then give it its name; the name is on the disk when this returns."""
        os.fsync(self.fd)
        for remaining in reversed(range(RACE_TRIES)):
            try:
                _make_folders(dest.parent)
                self._path.rename(dest)
                break
            except FileNotFoundError:
                if not remaining:
                    raise
            except (IsADirectoryError, NotADirectoryError, FileExistsError) as exc:
                name = str(dest.relative_to(self._root))
                raise invalid_name(name, "a folder cannot hold an object and others below its name") from exc
        self._is_committed = True
        _sync_folder(dest.parent)

    def close(self) -> None:
        os.close(self.fd)
        if not self._is_committed:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def gathered(blocks: AsyncIterable[bytes], least: int) -> AsyncGenerator[bytes, None]:
    """Join small blocks to ones of at least `least` bytes, the last excepted."""
    waiting: list[bytes] = []
    size = 0
    async for block in blocks:
        waiting.append(block)
        size += len(block)
        if size >= least:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def _read_blocks(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(fd, min(BLOCK_BYTES, end - start), start)):
        start += len(block)
        yield block


def _append(source: int, dest: int, stop: threading.Event) -> None:
    """Append all of a file to another, inside the kernel where it can."""
    remaining = os.fstat(source).st_size
    while remaining and not stop.is_set():
        try:
            copied = os.copy_file_range(source, dest, min(remaining, COPY_BYTES))
        except OSError as exc:
            if exc.errno not in _NO_KERNEL_COPY:
                raise
            copied = 0
        if not copied:  # another file system, or one that cannot: through memory
            block = os.read(source, BLOCK_BYTES)
            copied = os.write(dest, block)
            os.lseek(source, copied - len(block), os.SEEK_CUR)
            if not block:
                return
        remaining -= copied
    if stop.is_set():
        raise OSError(errno.ECANCELED, "cancelled")


def _remove_tree(folder: Path) -> None:
    """Remove a folder while others may write into it or remove it too; what is written meanwhile may stay."""
    for _ in range(RACE_TRIES):
        if not folder.is_dir():
            return
        try:
            shutil.rmtree(folder)
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
                raise


def _make_folders(folder: Path) -> None:
    """Make missing folders, and see that their names survive a loss of power too."""
    missing = [folder, *folder.parents]
    missing = list(itertools.takewhile(lambda path: not path.is_dir(), missing))
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # removed with all in it, by someone who did not want it
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_orphans(staging: Path) -> None:
    """Remove what writers left that were killed: nobody holds the lock of their files."""
    if not staging.is_dir():
        return
    for path in staging.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < STAGING_ORPHAN_S:
                continue
            with path.open("rb") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

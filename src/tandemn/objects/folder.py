"""Objects as files of a folder.

Plain system calls rather than a client library, for what those do not give: data on the disk before the
name appears, listing in order, and writing that goes to the disk while more comes in. A write goes to a file of its own in
`.staging`, is synced, then renamed; the lock on that file tells the next start whether its writer lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from tandemn.errors import TandemnError
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
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
    from pathlib import Path

#: Folder of unfinished objects, at the root of the store.
STAGING = ".staging"
#: Seconds after which an unlocked staging file belongs to nobody: a writer locks its file at once.
STAGING_ORPHAN_S = 60.0
#: Names that a listing reads at a time.
LIST_PAGE = 1000
#: Bytes written before the kernel is told to begin bringing them to the disk: the sync at the end then finds
#: little left to do. Joining 1.2 GB on a quiet ext4, three rounds, synced: 1,680 to 1,780 MB/s with
#: copy_file_range; 1,120 to 1,340 without this; through memory 510 to 2,230.
WRITE_OUT_BYTES = 64 * 1024 * 1024
#: Bytes copied inside the kernel between two looks at whether to stop.
COPY_BYTES = 16 * 1024 * 1024
#: Tries to remove a folder that others write into.
REMOVE_TRIES = 5
#: Tries to write into a folder that others remove: more than several of them have together, so that the write wins.
WRITE_TRIES = 100

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: Another file system, or one that cannot copy by itself.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
#: Flag of sync_file_range(2): begin writing what is not on its way yet, wait for nothing.
_SYNC_FILE_RANGE_WRITE = 2


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
                        _append(fd, staged, stop)
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
        self._on_its_way = 0
        self.size = 0
        """Bytes written."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._grown(written)
            view = view[written:]

    def copy(self, source: int, count: int) -> int:
        """Append up to `count` bytes from where `source` stands, inside the kernel; 0: not possible here."""
        try:
            copied = os.copy_file_range(source, self._fd, count)
        except OSError as exc:
            if exc.errno not in _NO_KERNEL_COPY:
                raise
            return 0
        self._grown(copied)
        return copied

    def _grown(self, count: int) -> None:
        self.size += count
        if self.size - self._on_its_way >= WRITE_OUT_BYTES:
            _begin_write_out(self._fd, self._on_its_way, self.size)
            self._on_its_way = self.size

    def commit(self, dest: Path) -> None:
        """Put the data on the disk, then give it its name; the name is on the disk when this returns."""
        os.fsync(self._fd)
        for remaining in reversed(range(WRITE_TRIES)):
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
        os.close(self._fd)
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


def _append(source: int, dest: _Staged, stop: threading.Event) -> None:
    """Append all of a file to another: inside the kernel, or through memory where it cannot do that."""
    remaining = os.fstat(source).st_size
    while remaining:
        if stop.is_set():
            raise OSError(errno.ECANCELED, "cancelled")
        copied = dest.copy(source, min(remaining, COPY_BYTES))
        if not copied:
            block = os.read(source, BLOCK_BYTES)
            if not block:
                return
            dest.write(block)
            copied = len(block)
        remaining -= copied


def _begin_write_out(fd: int, start: int, end: int) -> None:
    """Tell the kernel to write these bytes now, where it can be told; a fault shows when they are synced."""
    if sys.platform == "linux":
        _libc().sync_file_range(
            fd, ctypes.c_int64(start), ctypes.c_int64(end - start), _SYNC_FILE_RANGE_WRITE
        )


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _remove_tree(folder: Path) -> None:
    """Remove a folder while others may write into it or remove it too; what is written meanwhile may stay."""
    for _ in range(REMOVE_TRIES):
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

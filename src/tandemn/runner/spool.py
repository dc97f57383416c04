"""The answers of one chunk on the replica's disk, in the order in which they came.

One file, appended to, in the format of a segment (see `batch/answers.py`), so that a part is a slice of it.
Two arrays say where each request's line is; the lines are read back in input order at the end. Which requests
have a line is kept in a file of its own that outlives a kill (see `fleet/remains.py`).
"""

from __future__ import annotations

import mmap
import os
from array import array
from typing import TYPE_CHECKING

from tandemn.batch import answers
from tandemn.errors import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Written to the file at a time.
_BUFFER_BYTES = 1 << 18

#: Read back at a time.
BLOCK_BYTES = 1 << 20

_ANSWER, _ERROR = 1, 2


class Spool:
    """Append lines by request index; slice parts off; read all back in order."""

    def __init__(self, path: Path, requests: int) -> None:
        self._path = path
        # Both ends of one file: appended to through a buffer, read at positions without one.
        self._file = path.open("w+b", buffering=_BUFFER_BYTES)
        self._start = array("Q", bytes(8 * requests))
        self._length = array("L", bytes(array("L").itemsize * requests))
        self._kinds_path = path.with_name(f"{path.name}.kinds")
        self._kind = _mapped(self._kinds_path, requests)
        self.size = 0
        """Bytes appended."""
        self.stored = 0
        """Bytes that parts have been stored of, from the beginning."""
        self.answers = 0
        self.errors = 0

    @property
    def count(self) -> int:
        """Requests that have ended."""
        return self.answers + self.errors

    def publish(self, name: str) -> None:
        """Let what this spool has be counted, under this name in its folder, should we be killed."""
        self._check_open()
        path = self._kinds_path.with_name(name)
        self._kinds_path.rename(path)
        self._kinds_path = path

    def has(self, index: int) -> bool:
        return self._kind[index] != 0

    def append(self, index: int, line: bytes, *, is_error: bool) -> bool:
        """Keep the line (without LF) of one request; False where it has one already, which stands.

        Raises:
            LeaseLost: the spool was closed meanwhile.
        """
        self._check_open()
        if self._kind[index]:
            return False
        kind: answers.Kind = "e" if is_error else "o"
        record = answers.encode_segment([answers.Answer(index=index, kind=kind, line=line)])
        self._file.write(record)
        # A record ends in its line and a LF, which is just what the object needs.
        self._length[index] = len(line) + 1
        self._start[index] = self.size + len(record) - self._length[index]
        self._kind[index] = _ERROR if is_error else _ANSWER
        self.size += len(record)
        if is_error:
            self.errors += 1
        else:
            self.answers += 1
        return True

    def read(self, start: int, end: int) -> bytes:
        """Give bytes [start, end) of the file. Raises LeaseLost where it was closed meanwhile."""
        self._flush()
        return os.pread(self._file.fileno(), end - start, start)

    def object_size(self, *, errors: bool) -> int:
        """Bytes of the object of answers or of errors."""
        kind = _ERROR if errors else _ANSWER
        return sum(length for length, own in zip(self._length, self._kind[:], strict=True) if own == kind)

    def ordered(self, *, errors: bool) -> Iterator[bytes]:
        """Give the lines of answers or of errors in input order, each with LF, in blocks.

        Raises:
            LeaseLost: the spool was closed meanwhile.
        """
        kind = _ERROR if errors else _ANSWER
        self._flush()
        block: list[bytes] = []
        size = 0
        for index, own in enumerate(self._kind[:]):
            if own != kind:
                continue
            self._check_open()
            block.append(os.pread(self._file.fileno(), self._length[index], self._start[index]))
            size += self._length[index]
            if size >= BLOCK_BYTES:
                yield b"".join(block)
                block, size = [], 0
        if block:
            yield b"".join(block)

    def _flush(self) -> None:
        self._check_open()
        self._file.flush()

    def _check_open(self) -> None:
        if self._file.closed:
            raise LeaseLost("the chunk is not held any more")

    def close(self) -> None:
        """Give the space back; may be called twice."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._kinds_path.unlink(missing_ok=True)
            self._file.close()


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Make a file of `size` zeros and map it: what is stored into it is there also after a `kill -9`."""
    with path.open("w+b") as file:
        # Written, not only sized: a full disk must be an error here, not a SIGBUS later.
        file.write(bytes(size))
        file.flush()
        return mmap.mmap(file.fileno(), size)

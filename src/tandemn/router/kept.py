"""What a stream has said, kept for the case that it must go on elsewhere. Pure.

Nothing is parsed before a stream breaks. Events resemble each other, so of most only what follows their common
beginning is kept; and where an answer is long or memory short, that is compressed.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes kept of one stream, and of all, beyond which more is compressed. It costs as much as everything else that is
#: done for an event, and most answers end before.
RAW_STREAM_BYTES: Final = 128 << 10
RAW_TOTAL_BYTES: Final = 64 << 20
#: What a block costs beside its content, roughly.
BLOCK_BYTES: Final = 100


class Total:
    """Bytes kept over all streams."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class Kept:
    """The events of one stream, in blocks."""

    __slots__ = ("_blocks", "_total", "size")

    def __init__(self, total: Total) -> None:
        self._blocks: list[tuple[bytes, bool, bytes]] = []
        self._total = total
        self.size = 0

    def add(self, content: bytes, beginning: bytes = b"") -> None:
        """Keep whole events; or, where they have a common beginning, what follows it, an event a line."""
        is_packed = self.size > RAW_STREAM_BYTES or self._total.size > RAW_TOTAL_BYTES
        if is_packed:
            content = zlib.compress(content, 1)
        self._blocks.append((beginning, is_packed, content))
        size = len(content) + BLOCK_BYTES
        self.size += size
        self._total.size += size

    def events(self) -> Iterator[bytes]:
        """All of it again, in order and in portions."""
        for beginning, is_packed, content in self._blocks:
            events = zlib.decompress(content) if is_packed else content
            if beginning:
                events = b"".join([b"%b%b\n\n" % (beginning, line) for line in events.split(b"\n")])
            yield events

    def forget(self) -> None:
        self._total.size -= self.size
        self.size = 0
        self._blocks.clear()

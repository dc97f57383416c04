"""From a backend's bytes to whole server-sent events. Pure: bytes in, bytes out.

`ChunkDecoder` undoes HTTP/1.1 chunked coding (RFC 9112, 7.1); `EventCutter` holds back what follows the last
complete event. Together they guarantee that a cut anywhere in a backend's answer leaves the client with whole
events. `CHUNK_BEGINS` tells the usual case, one chunk that is one whole event, without decoding it.
"""

from __future__ import annotations

import re
from typing import Final

#: Longest line of chunk size and extensions that is accepted.
MAX_SIZE_LINE: Final = 1024
#: Longest event that is held back while it is incomplete.
MAX_EVENT_BYTES: Final = 16 << 20
#: Longest trailer section.
MAX_TRAILER_BYTES: Final = 64 << 10

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
#: Chunks below this pass the quick way: events are of some hundred bytes.
MAX_QUICK_BYTES: Final = 2048
#: The size line of a chunk, by the length of its content.
SIZE_LINES: Final = tuple(b"%x\r\n" % n for n in range(MAX_QUICK_BYTES))
_BY_WHOLE: Final = {n + len(line) + 2: line for n, line in enumerate(SIZE_LINES) if n}
#: The same by the length of the whole chunk, both CRLF included; where no chunk is so long, what is longer than that.
CHUNK_BEGINS: Final = tuple(_BY_WHOLE.get(n, bytes(MAX_QUICK_BYTES)) for n in range(MAX_QUICK_BYTES))
#: How a chunk ends that holds whole events.
EVENT_CHUNK_END: Final = b"\n\n\r\n"
NEWLINE: Final = 10
_SMALL_SIZES: Final = {line[:-2]: n for n, line in enumerate(SIZE_LINES) if n}


class Garbled(Exception):
    """The peer does not keep to the protocol; the connection cannot be used any further."""


class ChunkDecoder:
    """Undo chunked coding, whatever the pieces it comes in."""

    __slots__ = ("_left", "_pending", "_trailer", "is_ended", "rest")

    def __init__(self) -> None:
        self._left = -1  # bytes of this chunk still to come; -1: a size line comes next; -2: CRLF after data
        self._pending = b""
        self._trailer = False
        self.is_ended = False
        self.rest = b""
        """What followed the end."""

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._left == -1 and not self._pending and not self._trailer

    def feed(self, piece: bytes) -> bytes:
        """Return the content bytes in `piece`.

        Raises:
            Garbled: it is not chunked coding.
        """
        if self._pending:
            piece = self._pending + piece
            self._pending = b""
        out: list[bytes] = []
        at, end = 0, len(piece)
        while at < end and not self.is_ended:
            if self._left > 0:
                content = piece[at : at + self._left]
                out.append(content)
                at += len(content)
                self._left -= len(content)
                if self._left == 0:
                    self._left = -2
                continue
            moved = self._after_data(piece, at) if self._left == -2 else self._line(piece, at)
            if moved == at:
                self._pending = piece[at:]
                break
            at = moved
        if self.is_ended:
            self.rest += piece[at:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _after_data(self, piece: bytes, at: int) -> int:
        if len(piece) - at < 2:
            if piece[at:] not in b"\r\n":
                raise Garbled("chunk not ended by CRLF")
            return at
        if piece[at : at + 2] != b"\r\n":
            raise Garbled("chunk not ended by CRLF")
        self._left = -1
        return at + 2

    def _line(self, piece: bytes, at: int) -> int:
        stop = piece.find(b"\n", at)
        if self._trailer:
            if stop < 0:
                if len(piece) - at > MAX_TRAILER_BYTES:
                    raise Garbled("trailers too long")
                return at
            self.is_ended = piece[at : stop + 1] == b"\r\n"
            return stop + 1
        if stop < 0:
            if len(piece) - at > MAX_SIZE_LINE:
                raise Garbled("chunk size line too long")
            return at
        found = _SIZE.fullmatch(piece, at, stop + 1)
        if found is None:
            raise Garbled("not a chunk size")
        size = int(found[1], 16)
        if size:
            self._left = size
        else:
            self._trailer = True
        return stop + 1


def chunk_end(data: bytes, at: int) -> int:
    """Where the chunk that begins at `at` ends, its CRLF included; 0 where it is not all there or unusual."""
    stop = data.find(b"\r\n", at, at + 6)
    size = _SMALL_SIZES.get(data[at:stop]) if stop > 0 else None
    if size is None:
        return 0
    end = stop + size + 4
    return end if end <= len(data) else 0


class EventCutter:
    """Hold back what follows the last complete event."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = b""

    def feed(self, content: bytes) -> bytes:
        """Return the whole events that are complete now.

        Raises:
            Garbled: an event longer than `MAX_EVENT_BYTES`.
        """
        if self.held:
            # The end of an event may lie across the border, so the search begins a little before it.
            start = max(0, len(self.held) - 3)
            content = self.held + content
        else:
            start = 0
        bare, full = content.rfind(b"\n\n", start), content.rfind(b"\n\r\n", start)
        cut = max(bare + 2 if bare >= 0 else 0, full + 3 if full >= 0 else 0)
        self.held = content[cut:]
        if len(self.held) > MAX_EVENT_BYTES:
            raise Garbled("an event is too long")
        return content[:cut]


def as_chunk(content: bytes) -> bytes:
    """One HTTP chunk; `content` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(content), content)


#: The end of a chunked message.
LAST_CHUNK: Final = b"0\r\n\r\n"
DONE_EVENT: Final = b"data: [DONE]\n\n"


def data_of(events: bytes) -> list[bytes]:
    """The data of each event; every one that OpenAI's API knows is on a single line."""
    return [line[5:].strip() for line in events.split(b"\n") if line.startswith(b"data:")]

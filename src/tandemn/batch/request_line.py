"""One request of a job's input, as its runner sees it: a line of a byte range, its body made ready for the engine.

The input was validated before (`batch/input.py`), so a line that does not parse here means that someone
replaced the input meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tandemn.errors import Broken

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterator

COMPLETIONS_URL = "/v1/completions"
CHAT_URL = "/v1/chat/completions"
EMBEDDINGS_URL = "/v1/embeddings"
REQUEST_URLS = (CHAT_URL, COMPLETIONS_URL, EMBEDDINGS_URL)

UTF8_BOM = b"\xef\xbb\xbf"
#: Longest line in bytes, its end not counted.
MAX_LINE_BYTES = 16 * 1024 * 1024
#: What may stand on a blank line.
BLANK = b" \t\r"
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLine:
    index: int
    """Position in the chunk, from 0."""
    custom_id: str
    url: str
    body: bytes
    """JSON on one line, as the engine gets it."""


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    url: str
    body: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


class LineSplitter:
    """Cut blocks into lines; only LF ends one, and a BOM before the first is no part of it.

    Memory is one line and one block; of a line that is too long nothing is kept, and it is given as an empty
    one: no request lies there.
    """

    def __init__(self, position: int = 0) -> None:
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._position = position

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """Position in the input and content, without its LF, of each line that ends in the block."""
        cut = block.rfind(b"\n")
        if cut >= 0:
            lines = b"".join((*self._rest, block[:cut])).split(b"\n")
            missing = self._rest_bytes - sum(map(len, self._rest))  # of the first line, where it was too long
            self._rest, self._rest_bytes = [], 0
            for line in lines:
                yield self._cleaned(b"" if missing or len(line) > MAX_LINE_BYTES else line)
                self._position += len(line) + missing + 1
                missing = 0
        tail = block[cut + 1 :]
        self._rest_bytes += len(tail)
        self._rest.append(tail)
        if self._rest_bytes > MAX_LINE_BYTES:
            self._rest = []

    def end(self) -> Iterator[tuple[int, bytes]]:
        """The last line, where no LF ends it."""
        if line := b"".join(self._rest):
            yield self._cleaned(line if len(line) == self._rest_bytes else b"")

    def _cleaned(self, line: bytes) -> tuple[int, bytes]:
        if self._position == 0 and line.startswith(UTF8_BOM):
            return len(UTF8_BOM), line[len(UTF8_BOM) :]
        return self._position, line


async def iter_requests(
    blocks: AsyncIterable[bytes],
    *,
    byte_start: int,
    requests: int,
    skipped: Collection[int] = (),
    model: str | None = None,
    max_output_tokens: int | None = None,
) -> AsyncGenerator[RequestLine, None]:
    """Yield the requests of a chunk from the blocks of its byte range.

    Args:
        blocks: the input's bytes from `byte_start` on.
        byte_start: where the chunk begins in the input.
        requests: how many the chunk has.
        skipped: byte positions in the input of lines that `--skip-invalid` left out.
        model: what `body.model` becomes; None leaves it.
        max_output_tokens: the most that a body may ask for; None leaves it.

    Raises:
        Broken: `input_changed` where the lines are not the ones that were validated.
    """
    splitter = LineSplitter(byte_start)
    index = 0
    async for block in blocks:
        for position, line in splitter.feed(block):
            if position not in skipped and not is_blank(line):
                yield _read(line, index, model, max_output_tokens)
                index += 1
    for position, line in splitter.end():
        if position not in skipped and not is_blank(line):
            yield _read(line, index, model, max_output_tokens)
            index += 1
    if index != requests:
        raise _changed(f"it holds {index} requests from byte {byte_start} on where {requests} were counted")


def is_blank(line: bytes) -> bool:
    return not line.strip(BLANK)


def prepare_body(body: bytes, url: str, *, model: str | None, max_output_tokens: int | None) -> bytes:
    """Put `model` into a body and lower its output limit to `max_output_tokens`; the rest passes unread.

    A limit that the request gives itself stands where it is lower; one that is not a number is the engine's
    to refuse. Embeddings have no output tokens.
    """
    if model is None and (max_output_tokens is None or url == EMBEDDINGS_URL):
        return body
    fields = _FIELDS.decode(body)
    if model is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if max_output_tokens is not None and url != EMBEDDINGS_URL:
        _cap(fields, max_output_tokens)
    return msgspec.json.encode(fields)


def _cap(fields: dict[str, msgspec.Raw], limit: int) -> None:
    given = {name: _ANY.decode(fields[name]) for name in _LIMITS if name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        fields["max_tokens"] = msgspec.Raw(b"%d" % limit)
    for name, value in given.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value > limit:
            fields[name] = msgspec.Raw(b"%d" % limit)


def _read(line: bytes, index: int, model: str | None, max_output_tokens: int | None) -> RequestLine:
    try:
        parsed = _LINE.decode(line)
        body = prepare_body(bytes(parsed.body), parsed.url, model=model, max_output_tokens=max_output_tokens)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise _changed(f"request {index} of a chunk is no request any more") from exc
    return RequestLine(index=index, custom_id=parsed.custom_id, url=parsed.url, body=body)


def _changed(what: str) -> Broken:
    return Broken(
        f"the job's input was replaced after it was validated: {what}",
        code="input_changed",
        next_step="submit the job again, and leave its input as it is while it runs",
    )

"""HTTP/1.1 answers as bytes: the head of a backend's, and the router's own. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tandemn.router.sse import Garbled

#: Longest head of an answer.
MAX_ANSWER_HEAD_BYTES: Final = 256 << 10


class AnswerHead(msgspec.Struct, frozen=True):
    """What the router must know of an answer's head."""

    status: int
    head: bytes
    """The whole of it, CRLF CRLF included, as it came."""
    length: int | None
    """Content-Length; None where absent."""
    is_chunked: bool
    is_stream: bool
    """Server-sent events that can be read: no content coding."""
    is_json: bool
    keep_alive: bool
    is_clean: bool
    """Whether `head` may be passed on byte for byte: HTTP/1.1 and no field of one connection only."""


_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\r\n]*)?\r\n")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\r\n")
_HOP_FIELDS: Final = (b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te")


#: Heads that were read already: answers of one server differ in length and date only, and repeat.
_seen: Final[dict[bytes, AnswerHead]] = {}
_MAX_SEEN: Final = 512


def answer_head(head: bytes) -> AnswerHead:
    """`read_answer_head`, remembered: equal bytes mean the same."""
    known = _seen.get(head)
    if known is None:
        known = read_answer_head(head)
        if len(_seen) >= _MAX_SEEN:
            _seen.clear()
        _seen[head] = known
    return known


def read_answer_head(head: bytes) -> AnswerHead:  # noqa: C901 -- one loop over the fields, run for every answer
    """Read the head of an answer, up to and with the blank line.

    Raises:
        Garbled: it is not HTTP/1.x, or its framing is ambiguous.
    """
    status = _STATUS.match(head)
    if status is None:
        raise Garbled("not an HTTP answer")
    length: int | None = None
    is_chunked = is_stream = is_json = is_coded = False
    keep_alive = is_clean = status[1] == b"1"
    at, end = status.end(), len(head) - 2
    match = _FIELD.match
    while at < end:
        found = match(head, at)
        if found is None:
            raise Garbled("not a field line")
        at = found.end()
        name = found[1].lower()
        if name == b"content-length":
            if not found[2].isdigit() or (length is not None and length != int(found[2])):
                raise Garbled("bad Content-Length")
            length = int(found[2])
        elif name == b"content-type":
            kind = found[2].lower()
            is_stream, is_json = kind.startswith(b"text/event-stream"), kind.startswith(b"application/json")
        elif name == b"transfer-encoding":
            if found[2].lower() != b"chunked" or is_chunked:
                raise Garbled("unknown Transfer-Encoding")
            is_chunked = True
        elif name == b"content-encoding":
            is_coded = found[2].lower() not in {b"", b"identity"}
        elif name in _HOP_FIELDS:
            is_clean = False
            if name == b"connection":
                options = found[2].lower()
                keep_alive = b"close" not in options and (keep_alive or b"keep-alive" in options)
    if is_chunked and length is not None:
        raise Garbled("Content-Length with Transfer-Encoding")
    return AnswerHead(
        status=int(status[2]),
        head=head,
        length=length,
        is_chunked=is_chunked,
        is_stream=is_stream and not is_coded,
        is_json=is_json and not is_coded,
        keep_alive=keep_alive,
        is_clean=is_clean,
    )


def rewrite_head(head: AnswerHead, *, framing: bytes | None, close: bool) -> bytes:
    """The head as the client gets it, as HTTP/1.1 and without fields of the backend's connection.

    Args:
        head: as it came.
        framing: field lines instead of the backend's Content-Length and Transfer-Encoding; None keeps those.
        close: whether the client's connection ends with this answer.
    """
    first, _, rest = head.head.partition(b"\r\n")
    dropped = set(_HOP_FIELDS)
    if framing is not None:
        dropped |= {b"content-length", b"transfer-encoding", b"trailer"}
    lines = [b"HTTP/1.1" + first[8:], b"\r\n"]
    for line in rest[:-2].split(b"\r\n"):
        if line and line.partition(b":")[0].lower() not in dropped:
            lines += (line, b"\r\n")
    if framing:
        lines.append(framing)
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


_PHRASES: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def answer(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    fields: bytes = b"",
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """One whole answer of the router's own."""
    end = b"Connection: close\r\n" if close else b""
    head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n"
    whole = head % (status, _PHRASES[status], content_type, len(body), fields, end)
    return whole if head_only else whole + body


def error_body(message: str, *, kind: str, code: str) -> bytes:
    """An error in the shape of OpenAI's API."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0


_read_usage: Final = msgspec.json.Decoder(_Usage).decode
_USAGE_FIELD: Final = re.compile(rb'"(prompt_tokens|completion_tokens)"\s*:\s*(\d{1,12})')


def find_usage(tail: bytes) -> tuple[int, int] | None:
    """Prompt and completion tokens from the last `usage` object in `tail`, without parsing the rest."""
    # Nearly always it is the last object of an answer, and holds no other.
    before, _, inside = tail.rpartition(b"{")
    if before.endswith((b'"usage":', b'"usage": ')):
        try:
            usage = _read_usage(b"{%b}" % inside.partition(b"}")[0])
        except msgspec.DecodeError:
            return None
        return usage.prompt_tokens, usage.completion_tokens
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    found = dict(_USAGE_FIELD.findall(tail, at))
    if b"prompt_tokens" not in found:
        return None
    return int(found[b"prompt_tokens"]), int(found.get(b"completion_tokens", b"0"))

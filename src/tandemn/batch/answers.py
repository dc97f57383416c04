"""How answers are written: lines of OpenAI's batch output, and segments of an unfinished chunk.

A segment is lines of `<index in chunk> <o|e> <line>`: o goes to the output, e to the errors. It is written
whole by a runner that may die; a torn last line is no answer. The first answer of an index counts.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes of the hash in a line's id.
_ID_BYTES = 12
_SEGMENT_LINE = re.compile(rb"(\d{1,12}) ([oe]) (\{.*\})", re.DOTALL)
_MESSAGE_LIMIT = 2000

Kind = Literal["o", "e"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    index: int
    """Position of the request in its chunk, from 0."""
    kind: Kind
    """`o`: a line of the output; `e`: a line of the errors."""
    line: bytes
    """JSON, without a line end."""


def success_line(batch_id: str, custom_id: str, *, request_id: str, body: bytes, status: int = 200) -> bytes:
    """Line of the output; `body` is the engine's JSON answer, passed on as it is.

    Format: https://platform.openai.com/docs/api-reference/batch/request-output
    """
    return _line(batch_id, custom_id, _response(request_id, status, one_line(body)), b"null")


def refusal_line(batch_id: str, custom_id: str, *, request_id: str, status: int, body: bytes) -> bytes:
    """Line of the errors for a request that the engine refused; code and message are the engine's own."""
    code, message = engine_error(status, body)
    try:
        embedded = msgspec.json.encode(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        embedded = msgspec.json.encode({"error": {"code": code, "message": message}})
    return _line(batch_id, custom_id, _response(request_id, status, embedded), _error(code, message))


def not_run_line(batch_id: str, custom_id: str, *, code: str, message: str) -> bytes:
    """Line of the errors for a request that has no answer: `batch_cancelled`, and the like."""
    return _line(batch_id, custom_id, b"null", _error(code, message))


def engine_error(status: int, body: bytes) -> tuple[str, str]:
    """Code and message of an engine's error body; vLLM, llama.cpp and FastAPI each write their own."""
    try:
        parsed: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        parsed = body.decode(errors="replace")
    fields = parsed if isinstance(parsed, dict) else {"message": parsed}
    inner = fields.get("error", fields)
    if not isinstance(inner, dict):
        inner = {"message": inner}
    message = inner.get("message") or inner.get("detail") or f"the engine answered with status {status}"
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    code = next((inner[key] for key in ("code", "type") if isinstance(inner.get(key), str)), "")
    return code or f"http_{status}", message[:_MESSAGE_LIMIT]


def one_line(body: bytes) -> bytes:
    """JSON without line ends, untouched where it has none."""
    if b"\n" not in body and b"\r" not in body:
        return body
    return msgspec.json.format(body, indent=-1)


def encode_segment(answers: Iterable[Answer]) -> bytes:
    """Write the answers of a segment."""
    return b"".join(b"%d %s %s\n" % (a.index, a.kind.encode(), a.line) for a in answers)


def decode_segment(data: bytes) -> Iterator[Answer]:
    """Read the answers of a segment; what is no whole line is dropped, and its request asked again."""
    for line in data[: data.rfind(b"\n") + 1].split(b"\n"):
        if match := _SEGMENT_LINE.fullmatch(line):
            yield Answer(index=int(match[1]), kind="o" if match[2] == b"o" else "e", line=match[3])


def first_answers(segments: Iterable[bytes]) -> dict[int, Answer]:
    """The answer of each index, from segments in the order in which they were written."""
    found: dict[int, Answer] = {}
    for segment in segments:
        for answer in decode_segment(segment):
            found.setdefault(answer.index, answer)
    return found


def _line(batch_id: str, custom_id: str, response: bytes, error: bytes) -> bytes:
    digest = hashlib.blake2b(f"{batch_id}\0{custom_id}".encode(), digest_size=_ID_BYTES).hexdigest()
    return b'{"id":"batch_req_%s","custom_id":%s,"response":%s,"error":%s}' % (
        digest.encode(),
        msgspec.json.encode(custom_id),
        response,
        error,
    )


def _response(request_id: str, status: int, body: bytes) -> bytes:
    return b'{"status_code":%d,"request_id":%s,"body":%s}' % (status, msgspec.json.encode(request_id), body)


def _error(code: str, message: str) -> bytes:
    return msgspec.json.encode({"code": code, "message": message})

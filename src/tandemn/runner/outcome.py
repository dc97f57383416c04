"""PURE: what an engine's answer means for its request: the answer, a refusal, or another try."""

from __future__ import annotations

from enum import Enum

import msgspec

#: Tries of one request that meets a fault of the engine (not its death), the first included.
MAX_TRIES = 5

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 8.0

#: Client errors that a later try may not meet: timeout, conflict, too early, too many requests.
_PASSING = frozenset({408, 409, 425, 429})


class Judgement(Enum):
    ANSWER = "answer"
    REFUSED = "refused"
    AGAIN = "again"


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: Usage | None = None


class _Response(msgspec.Struct):
    body: _Answer


class _Line(msgspec.Struct):
    response: _Response


_answers = msgspec.json.Decoder(_Answer)
_lines = msgspec.json.Decoder(_Line)

NO_USAGE = Usage()


def judge(status: int) -> Judgement:
    """Sort an answer by its HTTP status."""
    if 200 <= status < 300:
        return Judgement.ANSWER
    if 400 <= status < 500 and status not in _PASSING:
        return Judgement.REFUSED
    return Judgement.AGAIN


def usage(body: bytes) -> Usage | None:
    """Read the token counts of an answer (zeros where it has none); None where it is no JSON object."""
    try:
        # The decoder skips what it is not asked for without looking at its encoding.
        body.decode()
        found = _answers.decode(body).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found or NO_USAGE


def usage_of_line(line: bytes) -> Usage:
    """Read the token counts of an answer that an earlier holder stored; zeros where it has none."""
    try:
        return _lines.decode(line).response.body.usage or NO_USAGE
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return NO_USAGE


def backoff_s(tries: int) -> float:
    """Wait after the `tries`-th failed try (1 for the first)."""
    return min(_FIRST_BACKOFF_S * 2.0 ** (tries - 1), _MAX_BACKOFF_S)

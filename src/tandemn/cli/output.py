"""Where the command line writes: answers to stdout, notes and errors to stderr, plain text, never wrapped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tandemn.cli.text import printable
from tandemn.errors import TandemnError

if TYPE_CHECKING:  # its import takes longer than the whole of `tandemn --help`
    from pydantic import BaseModel

#: What a shell reports for a program that SIGINT ended.
EXIT_INTERRUPTED = 130


def say(lines: str | Iterable[str]) -> None:
    """Write lines to stdout at once: a reader at the other end of a pipe waits for them."""
    _write(sys.stdout, [lines] if isinstance(lines, str) else lines)


def note(lines: str | Iterable[str]) -> None:
    """Write lines to stderr: what a person wants to know and a script does not read."""
    _write(sys.stderr, [lines] if isinstance(lines, str) else lines)


def emit(value: BaseModel | dict[str, Any]) -> None:
    """Write one JSON value on one line of stdout; money is a number there, and nothing needs unescaping."""
    say(encode(value))


def encode(value: BaseModel | dict[str, Any]) -> str:
    """Render a value as `emit` writes it."""
    plain = value if isinstance(value, dict) else value.model_dump()
    return json.dumps(plain, default=_encode_other)


def error_lines(error: TandemnError) -> list[str]:
    """Say what went wrong, its stable code, and the next step where there is one."""
    lines = [f"error: {printable(error.message)} [{error.code}]"]
    if error.next_step:
        lines.append(f"next step: {printable(error.next_step)}")
    return lines


def error_value(error: TandemnError) -> dict[str, Any]:
    """Render an error for `--json`."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "next_step": error.next_step,
            "param": error.param,
            "object_id": error.object_id,
        }
    }


def _write(stream: Any, lines: Iterable[str]) -> None:
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


def _encode_other(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

"""Inputs to measure with: request lines of the Batch format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ENDPOINT = "/v1/chat/completions"
MODEL = "demo/tiny"


def generating_line(number: int, *, tokens: int) -> bytes:
    """One chat request that makes the engine generate exactly `tokens` tokens."""
    return _line(number, f"Say something about the number {number}.", tokens=tokens, ignore_eos=True)


def sized_line(number: int, *, line_bytes: int) -> bytes:
    """One chat request of exactly `line_bytes` bytes, its LF included."""
    bare = len(_line(number, "", tokens=64))
    return _line(number, "x" * (line_bytes - bare), tokens=64)


def _line(number: int, content: str, **parameters: object) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": parameters.pop("tokens"),
        **parameters,
    }
    line = {"custom_id": f"request-{number:08}", "method": "POST", "url": ENDPOINT, "body": body}
    return msgspec.json.encode(line) + b"\n"


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write an input file; return its bytes."""
    with path.open("wb", buffering=1 << 20) as file:
        for line in lines:
            file.write(line)
        return file.tell()

"""HTTP's Range header, as far as our own clients use it: one range of bytes."""

from __future__ import annotations

import re

from tandemn.errors import InvalidInput

_ONE_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")


def parse_range(header: str, size: int) -> tuple[int, int]:
    """Return (start, end), end exclusive and cut to `size`; everything where the header is empty.

    Raises:
        InvalidInput: not one range of bytes, or beyond the end (code `invalid_range`).
    """
    if not header:
        return 0, size
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None:
        raise InvalidInput(f"not a range of bytes: {header[:80]}", code="invalid_range", param="Range")
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if start >= end:
        raise InvalidInput(f"{header} is beyond the {size} bytes", code="invalid_range", param="Range")
    return start, end

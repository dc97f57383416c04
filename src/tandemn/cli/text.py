"""Text of the command line, in and out (PURE): durations, counts, sizes, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tandemn.errors import InvalidInput

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PLAIN = re.compile(r"\d+(\.\d+)?|\.\d+", re.ASCII)
_PARTS = re.compile(r"(?:(?:\d+(?:\.\d+)?|\.\d+)[dhms])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([dhms])", re.ASCII)
_SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
#: What the control plane accepts as a deadline (`JobSpec.slo_s`).
MAX_SLO_S = 30 * 86400.0


def parse_slo(text: str) -> float:
    """Read `4`, `0.5h`, `30m`, `90s`, `1h30m` as seconds; a plain number is hours.

    Raises:
        InvalidInput: it is none of these, or not more than 0 and at most 30 days.
    """
    return parse_duration(text, "slo", code="invalid_slo")


def parse_duration(text: str, param: str, *, code: str = "wrong_usage") -> float:
    """Read a duration as `parse_slo` does, for the flag of `param`.

    Raises:
        InvalidInput: it is none, or not more than 0 and at most 30 days.
    """
    flag, word = f"--{param.replace('_', '-')}", text.strip().lower()
    problem = None
    if _PLAIN.fullmatch(word):
        seconds = float(word) * 3600.0
    elif _PARTS.fullmatch(word):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(word))
    else:
        seconds, problem = 0.0, "is not a duration"
    if problem is None and not 0 < seconds <= MAX_SLO_S:
        problem = "is not more than 0 and at most 30 days"
    if problem is not None:
        raise InvalidInput(
            f"{flag}: {printable(text)!r} {problem}",
            code=code,
            next_step="write 4h, 0.5h, 30m or 90s; a plain number is hours",
            param=param,
        )
    return seconds


def duration(seconds: float) -> str:
    """Write a duration in its two greatest units: `4h`, `1m 30s`, `0.4s`."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def rate(per_second: float) -> str:
    """Write a rate with as many digits as mean something."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:,.1f}"


def size(count: int) -> str:
    """Write a number of bytes: `12 bytes`, `3.4 MB`."""
    if count < 1000:
        return f"{count} bytes"
    unit = next((unit for unit in _SIZES if count < 999.95 * _SIZES[unit]), "TB")
    return f"{count / _SIZES[unit]:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """Write `1 replica`, `2 replicas`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor or break the line; all else stays as it is."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, two spaces apart; nothing is cut or wrapped."""
    cells = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]

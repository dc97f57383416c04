"""How many answers a replica had of each chunk, on its own disk: readable where it was killed without a word.

The runner keeps one small file per chunk, a byte per request, mapped into memory: a store into it survives
`kill -9` at no cost. Whoever can see that disk counts what was computed and lost exactly; elsewhere the last
heartbeat is what is known.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Ending of the files that count; others are of chunks whose stored parts were not read yet.
SUFFIX = ".had"

#: In the replica's work folder: where these files lie.
SPOOL = "spool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """Of one chunk."""

    chunk: int
    token: str
    had: int
    """Answers, those of earlier holders included."""
    recomputed: int
    """Answers lost by earlier holders, as this one reckoned."""


def file_name(chunk: int, token: str, recomputed: int) -> str:
    """Return the name that `read` understands."""
    return f"{chunk}_{token}_{recomputed}{SUFFIX}"


def read(folder: Path) -> Iterator[Remains]:
    """Yield what lies in a spool folder; nothing where there is none, and nothing of what cannot be read."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(OSError, ValueError):
            chunk, token, recomputed = path.name.removesuffix(SUFFIX).split("_")
            kinds = path.read_bytes()
            yield Remains(
                chunk=int(chunk),
                token=token,
                had=len(kinds) - kinds.count(0),
                recomputed=int(recomputed),
            )

"""What the hub's own client has downloaded to this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: `OWNER/NAME`, as the hub allows them.
MODEL_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{7,64}")


def beginning(file: Path, limit: int) -> str:
    """Read at most `limit` bytes of a text. Raises OSError."""
    with file.open("rb") as stream:
        return stream.read(limit).decode("utf-8", "replace")


def cached_file(model: str, name: str, cache: Path) -> Path | None:
    """Find a file where the hub's own client keeps it: `models--owner--name/snapshots/REVISION`."""
    if not MODEL_ID.fullmatch(model):
        return None
    home = cache / f"models--{model.replace('/', '--')}"
    try:
        revision = (home / "refs" / "main").read_text("ascii").strip()
        file = home / "snapshots" / revision / name
        return file if _REVISION.fullmatch(revision) and file.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None

"""How long files are kept (PURE): as long as their owner asked, and no longer than the server keeps any."""

from __future__ import annotations

DAY_S = 86_400.0
#: Longest that an owner may ask for, in seconds.
LONGEST_S = 3650 * DAY_S


def expires_at(created_at: float, asked: float | None, kept_days: float | None) -> float | None:
    """Say when a file expires; None: never.

    Args:
        created_at: when it was made.
        asked: the moment that its owner asked for, where it did.
        kept_days: how many days the server keeps files; None: until they are deleted.
    """
    kept_until = created_at + kept_days * DAY_S if kept_days is not None else None
    moments = [each for each in (asked, kept_until) if each is not None]
    return min(moments) if moments else None


def kept_since(now: float, kept_days: float | None) -> float | None:
    """Say which files the server keeps: those made after this moment; None: all."""
    return now - kept_days * DAY_S if kept_days is not None else None

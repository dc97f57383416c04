"""Versions on the wire: each side says its own, and whether the two go together is decided here (PURE)."""

from __future__ import annotations

#: Sent with every request of our clients, and with every answer.
HEADER = "Tandemn-Version"


def go_together(one: str, other: str) -> bool:
    """Say whether two versions speak the same protocol: the same major one, and before 1.0 the same minor one."""
    return _generation(one) == _generation(other)


def _generation(version: str) -> tuple[str, ...]:
    parts = version.split(".")
    return tuple(parts[:2]) if parts[0] == "0" else tuple(parts[:1])

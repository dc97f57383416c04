"""How a runner ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why it ends, and what it still does before."""

    outcome: Literal["completed", "preempted", "killed", "failed"]
    code: str | None = None
    reason: str | None = None
    is_rejected: bool = False
    """The control plane does not know this replica: there is nobody to store for or to take leave of."""

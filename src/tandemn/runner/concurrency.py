"""PURE: how many requests may be with the engine at once, and how many chunks are worth holding.

The engine is full while its own waiting queue is never empty; a long queue gains nothing, makes answers
late and a lost replica dearer. So there is a little more in flight than the engine computes at once, and
its own figures move the limit between bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

#: No chunk is leased ahead while the requests not yet sent last longer than this.
AHEAD_S = 5.0

#: Held at once, those being uploaded included: what a runner goes on with while the control plane is away.
MAX_HELD = 32

#: Chunks asked for in one call.
MAX_LEASED_AT_ONCE = 16


def slack(slots: int) -> int:
    """Requests that wait in the engine, so that a slot that becomes free is filled at once."""
    return max(2, slots // 8)


def first_limit(slots: int) -> int:
    """The limit before the engine has told any figures."""
    return slots + slack(slots)


def next_limit(limit: int, *, running: int, waiting: int, slots: int) -> int:
    """Move `limit` by one reading of the engine's own queue.

    Down to what really runs where many wait (the memory for contexts is full, not the slots); up by a
    quarter where all is running and nothing waits.
    """
    spare = slack(slots)
    if waiting > 2 * spare:
        return max(spare, running + spare)
    if waiting == 0 and running >= limit - 1:
        return min(first_limit(slots), limit + max(1, limit // 4))
    return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a runner has in hand."""

    held: int
    """Chunks, those being uploaded included."""
    not_begun: int
    unsent: int
    """Requests of held chunks that are not with the engine yet."""
    limit: int
    requests_per_s: float
    requests_per_chunk: float
    """Mean of the chunks seen so far; 0 before the first."""


def chunks_wanted(holding: Holding) -> int:
    """Say how many chunks to ask for now; 0 means: enough in hand."""
    room = MAX_HELD - holding.held
    if room <= 0:
        return 0
    short = max(2 * holding.limit, holding.requests_per_s * AHEAD_S) - holding.unsent
    if short <= 0:
        return 0 if holding.not_begun else 1
    per_chunk = holding.requests_per_chunk
    wanted = 1 if per_chunk <= 0 else -int(-short // per_chunk)
    return max(1, min(wanted, room, MAX_LEASED_AT_ONCE))

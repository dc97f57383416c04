"""When a callback that was not taken is tried again, and when it is given up (PURE)."""

from __future__ import annotations

from dataclasses import dataclass

#: The wait after a failed try: doubled with each, from the first to the last of these. In seconds.
BACKOFF_S = (1.0, 60.0)
#: Tries of a callback that Koi itself refuses (4xx): it will not change its mind, but a proxy before it may.
REFUSALS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Not before this time."""

    not_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Never again."""

    reason: str


def after_failure(
    *, tries: int, emitted_at: float, now: float, keep_s: float, is_refused: bool
) -> Again | Drop:
    """Decide what becomes of a callback after its `tries`-th try has failed.

    Args:
        tries: how often it was tried, this time included.
        emitted_at: when what it tells of happened.
        now: the present.
        keep_s: how long a callback is kept.
        is_refused: whether Koi answered that it will not take it, rather than not now.
    """
    if is_refused and tries >= REFUSALS:
        return Drop(reason=f"Koi refused it {tries} times")
    if now - emitted_at >= keep_s:
        return Drop(reason=f"Koi did not take it within {keep_s:g} s")
    wait_s = min(BACKOFF_S[0] * 2 ** min(tries - 1, 16), BACKOFF_S[1])
    return Again(not_before=now + wait_s)

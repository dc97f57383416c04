"""Who of several control planes on one database leads: pure.

One row, the seat, names the leader and its term. A leader proves that it lives by a beat that it counts up;
whoever sees that beat stand still for `LEASE_S`, on a clock of its own, may take the seat under the next
term. No two clocks are ever compared. A leader trusts its seat for `HOLD_S` from the moment at which it
began its last successful beat, which ends before anybody else may take it.

Why a row, and not a lock of PostgreSQL's: it is one mechanism for both stores, it survives connection
poolers and failovers (which drop session locks without a word), and the term is what stale writes are
refused by, which a lock alone cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: Between two beats of a control plane.
BEAT_S = 2.0
#: A holder whose beat stood still for this long has lost the seat to whoever asks first.
LEASE_S = 10.0
#: A leader acts for this long after it began its last beat: shorter than the lease by more than a clock's drift.
HOLD_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The seat, as recorded."""

    term: int
    holder: str | None
    """Id of the control plane that leads; None: it gave the seat up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A control plane's beat, and when this one first saw it at that."""

    beat: int
    since: float
    """On the observer's own monotonic clock."""
    is_dead: bool = False
    """Its process was on this machine and is gone."""

    def is_silent(self, now: float, lease_s: float) -> bool:
        return self.is_dead or now - self.since > lease_s


class Step(StrEnum):
    LEAD = "lead"
    CLAIM = "claim"
    FOLLOW = "follow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    step: Step
    reason: str


def decide(seat: Seat, *, me: str, holder: Sighting | None, now: float, lease_s: float = LEASE_S) -> Verdict:
    """Say what the control plane `me` does about the seat.

    Args:
        seat: as it is recorded now.
        me: id of the one that asks.
        holder: what `me` saw of the holder's beat; None: the holder has no record.
        now: on the same monotonic clock as `holder.since`.
        lease_s: how long a beat may stand still.
    """
    if seat.holder == me:
        return Verdict(step=Step.LEAD, reason="it holds the seat")
    if seat.holder is None:
        return Verdict(step=Step.CLAIM, reason="nobody leads")
    if holder is None:
        return Verdict(step=Step.CLAIM, reason=f"{seat.holder}, which led, left no record")
    if holder.is_dead:
        return Verdict(step=Step.CLAIM, reason=f"the process of {seat.holder}, which led, is gone")
    if holder.is_silent(now, lease_s):
        return Verdict(step=Step.CLAIM, reason=f"{seat.holder}, which led, was silent for {lease_s:g} s")
    return Verdict(step=Step.FOLLOW, reason=f"{seat.holder} leads")


def watch(before: Sighting | None, beat: int, *, is_dead: bool, now: float) -> Sighting:
    """Update what is known of a control plane whose recorded beat is `beat` now."""
    since = before.since if before is not None and before.beat == beat else now
    return Sighting(beat=beat, since=since, is_dead=is_dead)

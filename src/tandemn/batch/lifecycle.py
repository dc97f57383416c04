"""When a job moves on: pure. The reconciler loads the facts, asks, and applies with compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass

from tandemn.protocol.jobs import JobState

#: How long replicas have, after a cancel, for storing what they finished before the job is sealed.
CANCEL_GRACE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision looks at, for a job past planning."""

    state: JobState
    deadline: float
    stop_at_deadline: bool
    cancelling_at: float | None
    outcome: JobState | None
    """What a cancelling job will end as."""
    chunks_total: int
    chunks_done: int
    replicas_live: int
    replicas_started: int
    """How many of them have been launched."""
    replicas_begun: int
    """How many have begun to compute, of those that live."""
    over_budget: str | None = None
    """Why its budget does not let it go on; None: it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The job's next state and why; `outcome` where it is a way to the end."""

    to: JobState
    reason: str
    outcome: JobState | None = None


def decide(facts: Facts, now: float) -> Move | None:
    """Return the next move, or None: stay."""
    if facts.state is JobState.CANCELLING:
        return _cancelling(facts, now)
    if facts.state not in {JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING}:
        return None
    if facts.chunks_done == facts.chunks_total:
        return Move(to=JobState.ASSEMBLING, outcome=JobState.COMPLETED, reason="every request has its answer")
    if facts.over_budget is not None:
        return Move(to=JobState.CANCELLING, outcome=JobState.OVER_BUDGET, reason=facts.over_budget)
    if facts.stop_at_deadline and now >= facts.deadline:
        return Move(to=JobState.CANCELLING, outcome=JobState.EXPIRED, reason="the deadline has passed")
    if facts.replicas_begun and facts.state is not JobState.RUNNING:
        return Move(to=JobState.RUNNING, reason="replicas are computing")
    if facts.replicas_started and facts.state is JobState.WAITING:
        return Move(to=JobState.LAUNCHING, reason="replicas are starting")
    return None


def _cancelling(facts: Facts, now: float) -> Move | None:
    outcome = facts.outcome or JobState.CANCELLED
    if facts.chunks_total == 0:
        return Move(to=JobState.ASSEMBLING, outcome=outcome, reason="it was not begun")
    if facts.chunks_done == facts.chunks_total and outcome is not JobState.FAILED:
        return Move(to=JobState.ASSEMBLING, outcome=outcome, reason="every request has its answer")
    since = facts.cancelling_at if facts.cancelling_at is not None else now
    if facts.replicas_live == 0:
        return Move(to=JobState.ASSEMBLING, outcome=outcome, reason="every replica has ended")
    if now - since > CANCEL_GRACE_S:
        reason = f"replicas did not end within {CANCEL_GRACE_S:.0f} s"
        return Move(to=JobState.ASSEMBLING, outcome=outcome, reason=reason)
    return None

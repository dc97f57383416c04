"""The life of a replica, as a table: which state may follow which."""

from __future__ import annotations

from tandemn.protocol.replicas import ReplicaState as S

#: State -> the states that may follow. An ended state has none.
TRANSITIONS: dict[S, frozenset[S]] = {
    S.PENDING: frozenset({S.LAUNCHING, S.KILLED, S.SWAPPED_OUT, S.COMPLETED, S.FAILED}),
    S.LAUNCHING: frozenset(
        {S.STARTING, S.DRAINING, S.KILLED, S.SWAPPED_OUT, S.COMPLETED, S.PREEMPTED, S.FAILED}
    ),
    S.STARTING: frozenset(
        {S.RUNNING, S.DRAINING, S.KILLED, S.SWAPPED_OUT, S.COMPLETED, S.PREEMPTED, S.FAILED}
    ),
    S.RUNNING: frozenset({S.DRAINING, S.KILLED, S.SWAPPED_OUT, S.COMPLETED, S.PREEMPTED, S.FAILED}),
    S.DRAINING: frozenset({S.KILLED, S.SWAPPED_OUT, S.COMPLETED, S.PREEMPTED, S.FAILED}),
    S.COMPLETED: frozenset(),
    S.KILLED: frozenset(),
    S.SWAPPED_OUT: frozenset(),
    S.PREEMPTED: frozenset(),
    S.FAILED: frozenset(),
}


def advance(state: S, to: S) -> S:
    """Move to `to`, or raise ValueError where that move does not exist."""
    if to not in TRANSITIONS[state]:
        raise ValueError(f"a replica cannot go from {state} to {to}")
    return to

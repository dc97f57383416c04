from __future__ import annotations

from dataclasses import replace

import pytest

from tandemn.batch.lifecycle import CANCEL_GRACE_S, Facts, decide
from tandemn.protocol.jobs import JobState

NOW = 1000.0
RUNNING = Facts(
    state=JobState.RUNNING,
    deadline=NOW + 100,
    stop_at_deadline=False,
    cancelling_at=None,
    outcome=None,
    chunks_total=10,
    chunks_done=3,
    replicas_live=2,
    replicas_started=2,
    replicas_begun=2,
)


def moved(facts, now=NOW):
    move = decide(facts, now)
    return (move.to, move.outcome) if move else None


def test_a_running_job_stays():
    assert moved(RUNNING) is None


def test_it_is_sealed_when_every_chunk_is_done():
    assert moved(replace(RUNNING, chunks_done=10)) == (JobState.ASSEMBLING, JobState.COMPLETED)


def test_the_states_follow_the_replicas():
    waiting = replace(RUNNING, state=JobState.WAITING, replicas_begun=0, replicas_started=0)
    assert moved(waiting) is None
    assert moved(replace(waiting, replicas_started=1)) == (JobState.LAUNCHING, None)
    assert moved(replace(waiting, replicas_started=1, replicas_begun=1)) == (JobState.RUNNING, None)


def test_past_its_deadline_a_job_goes_on_unless_told_otherwise():
    assert moved(RUNNING, NOW + 101) is None
    expiring = replace(RUNNING, stop_at_deadline=True)
    assert moved(expiring, NOW + 99) is None
    assert moved(expiring, NOW + 101) == (JobState.CANCELLING, JobState.EXPIRED)


def test_over_budget_it_ends_and_keeps_what_is_done():
    facts = replace(RUNNING, over_budget="the budget is reached")
    move = decide(facts, NOW)
    assert move is not None
    assert (move.to, move.outcome, move.reason) == (
        JobState.CANCELLING,
        JobState.OVER_BUDGET,
        "the budget is reached",
    )
    assert moved(replace(facts, chunks_done=10)) == (JobState.ASSEMBLING, JobState.COMPLETED)
    assert moved(replace(facts, state=JobState.ASSEMBLING)) is None


@pytest.mark.parametrize(
    "outcome", [JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED, JobState.OVER_BUDGET]
)
def test_a_cancelling_job_waits_for_its_replicas_then_seals(outcome):
    facts = replace(RUNNING, state=JobState.CANCELLING, outcome=outcome, cancelling_at=NOW)
    assert moved(facts) is None
    assert moved(replace(facts, replicas_live=0)) == (JobState.ASSEMBLING, outcome)
    assert moved(facts, NOW + CANCEL_GRACE_S + 1) == (JobState.ASSEMBLING, outcome)


@pytest.mark.parametrize("state", [state for state in JobState if state.has_ended])
def test_what_has_ended_stays(state):
    assert moved(replace(RUNNING, state=state, chunks_done=10)) is None

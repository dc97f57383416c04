"""Sharing a quota that is used up: what a failed launch sets going, until the job has its share."""

from __future__ import annotations

from dataclasses import replace

from tandemn.fleet.scarcity import Job, Replica, settle

NOW = 1000.0
L4 = ("aws", "L4", "spot")


def running(name, kind=L4, **values):
    return Replica(replica_id=name, kind=kind, launched_at=1.0, **values)


def pending(name, not_before=0.0, kind=L4):
    return Replica(replica_id=name, kind=kind, not_before=not_before)


def lacked(name, at=NOW - 5, kind=L4):
    return Replica(
        replica_id=name, kind=kind, launched_at=at - 9, ended_at=at, stays=False, lacked_quota=True
    )


def job(job_id, owner, *replicas, since=0.0):
    return Job(job_id=job_id, owner=owner, since=since, replicas=tuple(replicas))


def anns(*more, count=4):
    return job("a", "ann", *(running(f"a{number}") for number in range(count)), *more)


BOBS = job("b", "bob", lacked("b0"), pending("b1", NOW + 60), pending("b2", NOW + 60), since=9.0)


def test_nothing_is_done_where_no_launch_failed_for_quota():
    waits = job("b", "bob", pending("b1", NOW + 60))
    told = settle([anns(pending("a9")), waits], NOW)
    assert (told.starts, told.drains, told.tries) == ({}, {}, [])


def test_whoever_has_more_than_a_fair_share_gives_some_up():
    told = settle([anns(), BOBS], NOW)
    assert set(told.drains) == {"a0", "a1"}, "the first of those that it would give up"
    assert "another owner" in told.drains["a0"]
    assert told.tries == [], "there is none yet"
    assert told.drained == {L4}


def test_they_are_not_drained_again_while_it_is_seen_whether_that_helps():
    assert settle([anns(), BOBS], NOW, spared={L4}).drains == {}


def test_what_is_on_its_way_is_not_asked_for_twice():
    going = [replace(running(f"a{number}"), stays=number > 1) for number in range(4)]
    told = settle([job("a", "ann", *going, pending("a8"), pending("a9")), BOBS], NOW)
    assert told.drains == {}
    assert told.starts == {"a": 0}, "who gave them up does not take them back"


def test_as_soon_as_one_has_ended_the_one_that_failed_tries_again():
    gone = replace(running("a0"), stays=False, ended_at=NOW - 1)
    ann = job("a", "ann", gone, running("a1"), running("a2"), running("a3"), pending("a9"))
    told = settle([ann, BOBS], NOW)
    assert told.tries == ["b1"]
    assert told.starts == {"a": 0}
    tries = replace(BOBS, replicas=(lacked("b0"), pending("b1"), pending("b2", NOW + 60)))
    assert settle([ann, tries], NOW).starts == {"a": 0}, "the one that is due may start"
    taken = replace(
        BOBS, replicas=(lacked("b0"), replace(running("b1"), launched_at=NOW - 0.5), pending("b2"))
    )
    assert settle([ann, taken], NOW).starts == {"a": 0, "b": 0}, "what was freed is taken"


def test_with_its_share_it_is_over():
    bob = job("b", "bob", lacked("b0"), replace(running("b1"), launched_at=NOW - 1))
    assert settle([anns(pending("a9")), bob], NOW).starts == {}


def test_other_kinds_are_left_alone():
    h100 = ("aws", "H100", "spot")
    others = job("c", "cem", *(running(f"c{number}", h100) for number in range(9)), pending("c9", kind=h100))
    told = settle([others, anns(), BOBS], NOW)
    assert set(told.drains) == {"a0", "a1"}
    assert "c" not in told.starts


def test_a_failure_that_is_over_does_not_count():
    """Its last replica of that kind did run: what it waits for now is no quota."""
    ran = replace(running("b9"), stays=False, ended_at=NOW - 1)
    bob = job("b", "bob", lacked("b0"), ran, pending("b1", NOW + 60))
    assert settle([anns(), bob], NOW).drains == {}

"""Who gets which places, rule by rule and as properties: no clock, no process, no database."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tandemn.fleet.sharing import HEAD_STARTS_S, WEIGHTS, Claim, Pool, most, share
from tandemn.protocol.jobs import Priority

NOW = 1000.0
LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def claim(job_id, owner="ann", *, held=0, wanted=1, since=0.0, **values):
    return Claim(job_id=job_id, owner=owner, held=held, wanted=wanted, since=since, **values)


def pool(limit, free=None, claims=(), **values):
    free = limit - sum(each.held for each in claims) if free is None else free
    return Pool(limit=limit, free=free, **values)


def places(claims, limit, **values):
    shares = share(claims, pool(limit, claims=claims, **values), NOW)
    return {job_id: each.places for job_id, each in shares.items()}


def test_where_there_is_enough_everyone_gets_what_it_wants():
    claims = [claim("a", wanted=3), claim("b", "bob", wanted=2)]
    shares = share(claims, pool(5), NOW)
    assert {name: each.may_start for name, each in shares.items()} == {"a": 3, "b": 2}
    assert [each.ahead for each in shares.values()] == [None, None]


def test_owners_share_alike_however_many_jobs_they_have():
    mine = [claim(f"a{number}", wanted=4) for number in range(5)]
    got = places([*mine, claim("b", "bob", wanted=16, since=5.0)], 8)
    assert got["b"] == 4
    assert [got[each.job_id] for each in mine] == [1, 1, 1, 1, 0]


def test_what_one_owner_does_not_want_the_others_have():
    assert places([claim("a", wanted=1), claim("b", "bob", wanted=16)], 8) == {"a": 1, "b": 7}


def test_priority_is_a_share_not_a_privilege():
    claims = [claim("a", "ann", wanted=16, priority=HIGH), claim("b", "bob", wanted=16, priority=LOW)]
    assert places(claims, 10) == {"a": 8, "b": 2}
    own = [claim("high", wanted=9, priority=HIGH), claim("low", wanted=9, priority=LOW)]
    assert places(own, 10) == {"high": 8, "low": 2}


def test_of_jobs_of_one_owner_the_oldest_comes_first_and_a_higher_one_before_it():
    claims = [claim("new", since=9.0), claim("old", since=1.0)]
    assert places(claims, 1) == {"new": 0, "old": 1}
    assert places([*claims, claim("high", since=1.0, priority=HIGH)], 1)["high"] == 1


def test_a_low_job_that_has_waited_long_enough_goes_before_a_new_high_one():
    low, head_start = claim("low", since=0.0, priority=LOW), HEAD_STARTS_S[HIGH] - HEAD_STARTS_S[LOW]
    assert places([low, claim("high", since=head_start + 1, priority=HIGH)], 1) == {"low": 1, "high": 0}
    assert places([low, claim("high", since=head_start - 1, priority=HIGH)], 1) == {"low": 0, "high": 1}


def test_owners_take_turns():
    """Ann's jobs are all older than Bob's; once she has been served it is his turn."""
    claims = [claim("a", since=0.0), claim("b", "bob", since=500.0)]
    assert places(claims, 1) == {"a": 1, "b": 0}
    assert places(claims, 1, served={"ann": 900.0}) == {"a": 0, "b": 1}


def test_whoever_comes_later_gets_its_share_from_who_has_more():
    claims = [claim("a", held=8, wanted=8), claim("b", "bob", wanted=8)]
    shares = share(claims, pool(8, claims=claims), NOW)
    assert (shares["a"].gives_up, shares["b"].places) == (4, 4)
    assert "b" not in shares["a"].reason.split(), "another owner's job is not named"
    assert (shares["b"].may_start, shares["b"].ahead) == (0, ()), "it waits until they are drained"


def test_a_place_on_its_way_is_not_asked_for_twice():
    """Four of the eight are draining: they are nobody's, and not free yet."""
    claims = [claim("a", held=4, wanted=8), claim("b", "bob", wanted=8)]
    shares = share(claims, pool(8, free=0), NOW)
    assert (shares["a"].gives_up, shares["b"].places, shares["b"].may_start) == (0, 4, 0)


def test_a_job_that_runs_keeps_its_last_place_within_its_owner_but_not_from_others():
    mine = [claim(f"a{number}", held=1, since=number) for number in range(4)]
    own = share([*mine, claim("a9", priority=HIGH)], pool(4, free=0), NOW)
    assert not any(each.gives_up for each in own.values())
    other = share([*mine, claim("b", "bob", wanted=4)], pool(4, free=0), NOW)
    assert [other[each.job_id].gives_up for each in mine] == [0, 0, 1, 1], "the youngest give"


def test_nobody_is_drained_for_a_job_whose_replicas_fail():
    claims = [claim("a", held=2, wanted=2), claim("b", "bob", is_retrying=True)]
    assert share(claims, pool(2, free=0), NOW)["a"].gives_up == 0
    assert share(claims, pool(3, free=1), NOW)["b"].may_start == 1


def test_what_was_told_to_stay_stays():
    claims = [claim("a", held=4, wanted=4, is_fixed=True), claim("b", "bob", wanted=4)]
    assert share(claims, pool(4, free=0), NOW)["a"].gives_up == 0


def test_the_line_tells_who_comes_first():
    claims = [
        claim("a1", held=1),
        claim("a2", since=1.0),
        claim("a3", since=2.0),
        claim("b1", "bob", since=9.0),
    ]
    shares = share(claims, pool(1, free=0), NOW)
    assert shares["b1"].ahead == ()
    assert shares["a2"].ahead == ("b1",)
    assert shares["a3"].ahead == ("b1", "a2")
    assert shares["a1"].ahead is None


def test_how_much_a_job_could_have():
    claims = [claim("a", held=2, wanted=2), claim("b", "bob", held=2, wanted=4)]
    assert most(claims, "a", pool(8, claims=claims), NOW) == 4
    assert most(claims, "b", pool(8, claims=claims), NOW) == 6
    assert most(claims, "a", pool(4, free=0), NOW) == 2


@st.composite
def situations(draw):
    limit = draw(st.integers(1, 12))
    left, claims = limit, []
    for number in range(draw(st.integers(1, 8))):
        held = draw(st.integers(0, left))
        left -= held
        claims.append(
            claim(
                f"j{number}",
                draw(st.sampled_from("abc")),
                held=held,
                wanted=held + draw(st.integers(0, 6)),
                since=draw(st.floats(0, NOW)),
                priority=draw(st.sampled_from(Priority)),
                is_retrying=draw(st.integers(0, 5)) == 0,
                is_fixed=draw(st.integers(0, 9)) == 0,
            )
        )
    served = draw(st.dictionaries(st.sampled_from("abc"), st.floats(0, NOW)))
    return claims, Pool(limit=limit, free=draw(st.integers(0, left)), served=served)


@given(situations())
def test_never_more_than_there_are_and_none_left_over(situation):
    claims, there = situation
    shares = share(claims, there, NOW)
    given_away = sum(each.places for each in shares.values())
    assert given_away <= there.limit
    assert sum(each.may_start for each in shares.values()) <= there.free
    unmet = [each for each in claims if shares[each.job_id].places < each.wanted]
    assert not unmet or given_away == there.limit, "a place is free, and somebody wants it"
    startable = sum(max(shares[each.job_id].places - each.held, 0) for each in claims)
    assert sum(each.may_start for each in shares.values()) == min(there.free, startable)
    for each in claims:
        its = shares[each.job_id]
        assert its.gives_up == max(each.held - its.places, 0)
        assert not (each.is_fixed and its.gives_up)
        assert its.may_start <= max(its.places - each.held, 0)
        assert bool(its.reason) >= bool(its.gives_up)
        lacks = its.places < each.wanted or its.may_start < its.places - each.held
        assert (its.ahead is not None) == lacks
        assert each.job_id not in (its.ahead or ())


@given(situations())
def test_no_owner_has_less_than_its_share_while_another_has_more(situation):
    """Moving one more place from owner to owner would make it less fair; fixed places aside."""
    claims, there = situation
    shares = share(claims, there, NOW)
    owners = {each.owner for each in claims}
    has = {owner: sum(shares[c.job_id].places for c in claims if c.owner == owner) for owner in owners}
    weight = {owner: max(WEIGHTS[c.priority] for c in claims if c.owner == owner) for owner in owners}
    for taker in owners:
        lacking = [c for c in claims if c.owner == taker and shares[c.job_id].places < c.wanted]
        if all(c.is_retrying for c in lacking):
            continue
        for giver in owners - {taker}:
            able = any(shares[c.job_id].places and not c.is_fixed for c in claims if c.owner == giver)
            fairer = (has[giver] - 1) * weight[taker] >= (has[taker] + 1) * weight[giver]
            assert not (able and fairer), (giver, taker)


@given(situations())
def test_a_move_is_not_undone_by_the_next_look(situation):
    claims, there = situation
    shares = share(claims, there, NOW)
    after = [replace(each, held=shares[each.job_id].places) for each in claims]
    again = share(after, replace(there, free=0), NOW)
    assert {name: each.places for name, each in again.items()} == {
        name: each.places for name, each in shares.items()
    }


@settings(max_examples=60)
@given(st.data())
def test_every_job_gets_its_turn_though_higher_ones_keep_coming(data):
    """Two places, jobs of ten minutes each; there is always somebody else of high priority who wants one."""
    now, waiting = 0.0, [claim("mine", "me", priority=data.draw(st.sampled_from(Priority)))]
    served: dict[str, float] = {}
    for turn in range(60):
        for number in range(3):
            owner = data.draw(st.sampled_from(["me", "x", "y"]))
            waiting.append(claim(f"j{turn}-{number}", owner, since=now, priority=HIGH))
        shares = share(waiting, Pool(limit=2, free=2, served=served), now)
        served_now = [each for each in waiting if shares[each.job_id].may_start]
        if "mine" in {each.job_id for each in served_now}:
            return
        served |= {each.owner: now for each in served_now}
        waiting = [each for each in waiting if each not in served_now]
        now += 600.0
    raise AssertionError("it starves")

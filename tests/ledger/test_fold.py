"""The fold's laws, over random logs that need not make sense."""

from __future__ import annotations

from decimal import Decimal
from functools import reduce
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ledger.log import price

from tandemn.ledger.entries import Billed, Ended, Label, MeterRead, Part, Repriced, RuleName, Started
from tandemn.ledger.fold import State, combine, fold
from tandemn.ledger.spending import spending

TIMES = st.integers(0, 40).map(lambda n: n / 4) | st.floats(0, 10, allow_nan=False)
ITEMS = st.sampled_from(["a", "b", "c"])
OWNERS = st.sampled_from(["job", "other"])
PRICES = st.none() | st.sampled_from([price(0), price(1), price("3.95"), price("3.95", "elsewhere")])
FACTS = st.one_of(
    st.builds(
        Started,
        at=TIMES,
        item=ITEMS,
        owner=OWNERS,
        part=st.sampled_from(Part),
        price=PRICES,
        rule=st.sampled_from(RuleName),
        label=st.sampled_from([Label.METERED, Label.ESTIMATED]),
        account=st.sampled_from(["", "acme"]),
    ),
    st.builds(Ended, at=TIMES, item=ITEMS),
    st.builds(Repriced, at=TIMES, item=ITEMS, price=PRICES),
    st.builds(
        MeterRead,
        owner=OWNERS,
        meter=st.sampled_from(["m1", "m2"]),
        backend=st.just("spot"),
        requests=st.integers(0, 9),
        inflight_s=st.sampled_from([(), ((1, 2.0),), ((1, 1.0), (4, 0.5))]),
    ),
    st.builds(
        Billed,
        at=TIMES,
        owner=OWNERS,
        account=st.just("acme"),
        part=st.sampled_from([Part.SERVERLESS, Part.SPOT]),
        start=TIMES,
        end=TIMES,
        usd=st.decimals(0, 5, places=2),
    ),
)
LOGS = st.lists(FACTS, max_size=14)


@given(LOGS, st.data())
def test_it_does_not_matter_where_the_log_is_split(log, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
    edges = [0, *cuts, len(log)]
    pieces = [fold(log[a:b]) for a, b in pairwise(edges)]
    assert reduce(combine, pieces) == fold(log)
    assert reduce(lambda later, earlier: combine(earlier, later), reversed(pieces)) == fold(log)


@given(LOGS, st.floats(0, 10))
def test_a_cut_at_an_instant_may_lie_inside_intervals(log, instant):
    before = [fact for fact in log if getattr(fact, "at", 0.0) <= instant]
    after = [fact for fact in log if getattr(fact, "at", 0.0) > instant]
    assert combine(fold(before), fold(after)) == fold(log)


@given(LOGS, LOGS, LOGS)
def test_combine_is_associative_commutative_and_counts_a_repeated_fact_once(one, two, three):
    a, b, c = fold(one), fold(two), fold(three)
    assert combine(combine(a, b), c) == combine(a, combine(b, c))
    assert combine(a, b) == combine(b, a)
    assert combine(a, a) == a
    assert combine(a, State()) == combine(State(), a) == a


@given(LOGS, st.randoms(use_true_random=False))
def test_the_order_of_simultaneous_facts_is_of_no_account(log, random):
    shuffled = list(log)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(log)
    assert spending(fold(shuffled), "job", 7.0) == spending(fold(log), "job", 7.0)


@given(LOGS, st.floats(0, 20))
def test_nothing_is_negative(log, now):
    spent = spending(fold(log), "job", now)
    assert spent.spent.at_least >= 0
    assert spent.usd_per_hour.at_least >= 0
    assert all(part.seconds >= 0 and part.running >= 0 for part in spent.parts)
    assert sum((part.spent.at_least for part in spent.parts), Decimal(0)) == spent.spent.at_least


@settings(max_examples=60)
@given(LOGS, st.floats(0, 20), st.floats(0, 20))
def test_without_bills_time_only_adds(log, one, other):
    log = [fact for fact in log if not isinstance(fact, Billed)]
    earlier, later = (spending(fold(log), "job", now).spent for now in sorted((one, other)))
    assert earlier.at_least <= later.at_least


@given(LOGS, st.floats(0, 20))
def test_what_has_no_price_makes_the_sum_unknown(log, now):
    log = [fact for fact in log if not isinstance(fact, (Billed, Repriced))]
    state = fold(log)
    unpriced = [
        item
        for item in state.items.values()
        if item.started
        and item.started.owner == "job"
        and item.started.price is None
        and item.started.at <= now
    ]
    spent = spending(state, "job", now).spent
    assert spent.unknown == len(unpriced)
    assert (spent.usd is None) == bool(unpriced)

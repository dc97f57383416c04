from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ledger.log import price

from tandemn.ledger.billing_rules import RULES
from tandemn.ledger.containers import (
    BusyPeriod,
    ServerlessTerms,
    Span,
    busy_container_s,
    container_facts,
    containers,
    together,
)
from tandemn.ledger.counterfactual import all_on_demand, all_serverless, savings
from tandemn.ledger.entries import Label, RuleName
from tandemn.ledger.figures import Figure
from tandemn.ledger.fold import fold
from tandemn.ledger.spending import spending

TERMS = ServerlessTerms(concurrency=4, scaledown_s=60, cold_start_s=0, rule=RuleName.MODAL)
COLD = ServerlessTerms(concurrency=4, scaledown_s=60, cold_start_s=30, rule=RuleName.MODAL)


def busy(*of_each):
    """(start, end, peak), everybody in flight all the time."""
    return [
        BusyPeriod(start=start, end=end, peak=peak, inflight_s=peak * (end - start), requests=peak)
        for start, end, peak in of_each
    ]


@st.composite
def busy_logs(draw):
    times = sorted(draw(st.sets(st.integers(0, 900), min_size=2, max_size=24)))
    peaks = draw(st.lists(st.integers(0, 13), min_size=len(times), max_size=len(times)))
    return busy(*((a, b, peak) for (a, b), peak in zip(pairwise(times), peaks, strict=False) if peak))


@pytest.mark.parametrize(
    ("log", "spans"),
    [
        # One request: its cold start is part of the time that it was in flight.
        (busy((0, 40, 1)), [(1, 0, 100)]),
        # Four at a time share one container: they are billed once.
        (busy((0, 40, 4)), [(1, 0, 100)]),
        # The fifth needs another.
        (busy((0, 40, 5)), [(1, 0, 100), (2, 0, 100)]),
        # Within the window the container is used again; the second goes when nothing needs it.
        (busy((0, 40, 5), (90, 100, 1)), [(1, 0, 160), (2, 0, 100)]),
        # After it, the next request starts another.
        (busy((0, 40, 1), (101, 110, 1)), [(1, 0, 100), (1, 101, 170)]),
        (busy((0, 10, 4), (10, 20, 9), (20, 30, 1)), [(1, 0, 90), (2, 10, 80), (3, 10, 80)]),
        ([], []),
    ],
)
def test_containers(log, spans):
    assert containers(log, TERMS) == [Span(number=n, start=start, end=end) for n, start, end in spans]


def test_a_log_of_another_backend_pays_the_cold_start_of_each_container_once():
    assert containers(busy((0, 10, 1), (50, 60, 1)), COLD) == [Span(number=1, start=0, end=120)]
    assert containers(busy((0, 10, 1)), COLD) == [Span(number=1, start=0, end=100)]


@given(busy_logs())
def test_every_moment_has_room_and_no_container_is_counted_per_request(log):
    spans = containers(log, TERMS)
    for each in log:
        inside = [span for span in spans if span.start <= each.start and each.end <= span.end]
        assert len(inside) * TERMS.concurrency >= each.peak
    alone = sum(each.peak * (each.end - each.start + TERMS.scaledown_s) for each in log)
    assert sum(span.end - span.start for span in spans) <= alone


@given(busy_logs(), st.data())
def test_cutting_a_period_changes_nothing(log, data):
    cut = []
    for each in log:
        at = data.draw(st.integers(int(each.start), int(each.end)))
        halves = (
            [(each.start, at), (at, each.end)] if each.start < at < each.end else [(each.start, each.end)]
        )
        cut += busy(*((a, b, each.peak) for a, b in halves))
    assert containers(cut, TERMS) == containers(log, TERMS)


@given(busy_logs(), st.integers(0, 1000))
def test_facts_of_a_log_read_so_far_are_taken_up_by_those_of_the_whole(log, now):
    """The control plane reads the meter piece by piece: what it said before is never contradicted."""

    def facts(periods):
        return list(
            container_facts(
                containers(periods, TERMS),
                owner="chat",
                backend="modal",
                rule=RuleName.MODAL,
                price=price("3600"),
                account="",
            )
        )

    whole = facts(log)
    seen = [fact for count in range(len(log)) for fact in facts(log[:count])]
    assert spending(fold([*seen, *whole]), "chat", now) == spending(fold(whole), "chat", now)
    assert spending(fold(whole), "chat", 2000).spent.at_least == sum(
        Decimal(span.end - span.start) for span in containers(log, TERMS)
    )


def test_a_container_runs_until_its_window_has_passed():
    facts = container_facts(
        containers(busy((0, 40, 1)), TERMS),
        owner="chat",
        backend="modal",
        rule=RuleName.MODAL,
        price=price("3600"),
        account="",
    )
    state = fold(facts)
    during, after = spending(state, "chat", 70), spending(state, "chat", 200)
    assert (during.spent.usd, during.usd_per_hour.usd) == (Decimal(70), Decimal(3600))
    assert (after.spent.usd, after.usd_per_hour.usd) == (Decimal(100), Decimal(0))
    assert during.spent.label is Label.METERED


def test_backends_laid_over_each_other():
    spot, serverless = busy((0, 100, 4)), busy((50, 150, 2))
    assert [(p.start, p.end, p.peak) for p in together([spot, serverless])] == [
        (0, 50, 4),
        (50, 100, 6),
        (100, 150, 2),
    ]
    # Peaks that need not have met are not added up.
    brief = [BusyPeriod(start=0, end=100, peak=8, inflight_s=100)]
    assert [p.peak for p in together([brief, brief_copy(brief)])] == [8]
    assert together([]) == []
    assert together([busy((3, 3, 1)), busy((4, 6, 1))]) == busy_without_requests((4, 6, 1))


def brief_copy(periods):
    return [BusyPeriod(start=p.start, end=p.end, peak=p.peak - 1, inflight_s=p.inflight_s) for p in periods]


def busy_without_requests(*of_each):
    return [
        BusyPeriod(start=p.start, end=p.end, peak=p.peak, inflight_s=p.inflight_s) for p in busy(*of_each)
    ]


@given(busy_logs(), busy_logs())
def test_together_is_busy_when_any_is_and_never_above_all_of_them(one, other):
    laid = together([one, other])
    for a, b in pairwise(laid):
        assert a.end <= b.start
    total = sum(p.inflight_s for p in [*one, *other])
    assert sum(p.inflight_s for p in laid) == pytest.approx(total)
    assert max((p.peak for p in laid), default=0) <= sum(
        max((p.peak for p in log), default=0) for log in (one, other)
    )


def test_all_serverless_prices_the_containers():
    figure = all_serverless(busy((0, 10, 4)), COLD, price("3600"))
    assert (figure.usd, figure.label) == (Decimal(100), Label.ESTIMATED)
    assert all_serverless(busy((0, 10, 4)), COLD, None).usd is None


def test_all_on_demand_is_sized_for_the_peak_and_never_scales_down():
    log = busy((0, 10, 3), (500, 501, 1))
    figure = all_on_demand(log, concurrency=2, since=0, until=600, rule=RuleName.EC2, price=price("3600"))
    assert (figure.usd, figure.label) == (Decimal(1200), Label.ESTIMATED)


def test_savings():
    saved = savings(Figure(at_least=Decimal(30)), Figure(at_least=Decimal(120)))
    assert (saved.saved_usd, saved.saved_share, saved.label) == (
        Decimal(90),
        Decimal("0.75"),
        Label.ESTIMATED,
    )
    assert savings(Figure(unknown=1), Figure()).saved_usd is None
    assert savings(Figure(), Figure()).saved_share is None


def test_busy_time_counts_a_container_once_for_all_that_it_takes():
    assert busy_container_s({1: 10, 4: 10, 5: 10, 8: 10}, 4) == 10 + 10 + 20 + 20


@pytest.mark.parametrize("name", list(RuleName))
@given(lived=st.decimals(0, 10_000, places=3))
def test_no_rule_bills_less_than_was_lived(name, lived):
    assert RULES[name].billed_s(lived) >= lived
    assert RULES[name].billed_s(RULES[name].billed_s(lived)) == RULES[name].billed_s(lived)

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ledger.log import price

from tandemn.ledger.billing_rules import RULES
from tandemn.ledger.containers import ServedRequest, ServerlessTerms, Span, busy_container_s, containers
from tandemn.ledger.counterfactual import all_on_demand, all_serverless, peak, savings
from tandemn.ledger.entries import Label, RuleName
from tandemn.ledger.figures import Figure

TERMS = ServerlessTerms(concurrency=4, scaledown_s=60, cold_start_s=30, rule=RuleName.MODAL)
REQUESTS = st.lists(
    st.builds(ServedRequest, at=st.integers(0, 300), seconds=st.integers(1, 50)), min_size=1, max_size=30
)


def requests(*pairs):
    return [ServedRequest(at=at, seconds=seconds) for at, seconds in pairs]


@pytest.mark.parametrize(
    ("log", "spans"),
    [
        # Cold start 30, work 10, idle 60: 100 s for one request.
        (requests((0, 10)), [(0, 100)]),
        # Four at a time share one container: they are billed once.
        (requests((0, 10), (0, 10), (1, 10), (2, 10)), [(0, 100)]),
        # The fifth needs another.
        (requests((0, 10), (0, 10), (0, 10), (0, 10), (0, 10)), [(0, 100), (0, 100)]),
        # Within the window the container is used again, without a cold start.
        (requests((0, 10), (90, 10)), [(0, 160)]),
        # After it, the next request starts another.
        (requests((0, 10), (101, 10)), [(0, 100), (101, 201)]),
        # One that joins during the cold start begins when the container is ready.
        (requests((0, 10), (20, 10)), [(0, 100)]),
    ],
)
def test_containers(log, spans):
    assert containers(log, TERMS) == [Span(start=start, end=end) for start, end in spans]


@given(REQUESTS)
def test_every_request_has_room_and_no_container_is_counted_per_request(log):
    spans = containers(log, TERMS)
    assert 1 <= len(spans) <= len(log)
    longest = max(each.seconds for each in log)
    for each in log:
        assert any(span.start <= each.at <= span.end for span in spans)
    alone = len(log) * (TERMS.cold_start_s + longest + TERMS.scaledown_s)
    assert sum(span.end - span.start for span in spans) <= alone


def test_all_serverless_prices_the_containers():
    burst = requests((0, 10), (0, 10), (0, 10), (0, 10))
    figure = all_serverless(burst, TERMS, price("3600"))
    assert (figure.usd, figure.label) == (Decimal(100), Label.ESTIMATED)
    assert all_serverless(burst, TERMS, None).usd is None


def test_all_on_demand_is_sized_for_the_peak_and_never_scales_down():
    log = requests((0, 10), (5, 10), (9, 10), (10, 10), (500, 1))
    assert peak(log) == 3
    figure = all_on_demand(log, concurrency=2, since=0, until=600, rule=RuleName.EC2, price=price("3600"))
    assert (figure.usd, figure.label) == (Decimal(1200), Label.ESTIMATED)
    assert peak([]) == 0


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

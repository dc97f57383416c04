from __future__ import annotations

from decimal import Decimal

import pytest

from tandemn.errors import Infeasible
from tandemn.ledger.budget import Advice, check_plan, decide
from tandemn.ledger.figures import Figure
from tandemn.prices import usd


def verdict(spent, rate="0", budget="10", unknown=0):
    return decide(
        Figure(at_least=Decimal(spent), unknown=unknown),
        Figure(at_least=Decimal(rate)),
        budget_usd=None if budget is None else Decimal(budget),
        shutdown_s=60,
    )


@pytest.mark.parametrize(
    ("spent", "rate", "advice"),
    [
        ("0", "0", Advice.GO_ON),
        ("8.99", "60", Advice.GO_ON),
        ("9", "60", Advice.DRAIN),
        ("9.99", "60", Advice.DRAIN),
        ("10", "0", Advice.OVER_BUDGET),
        ("11", "60", Advice.OVER_BUDGET),
    ],
)
def test_a_reserve_is_kept_for_ending(spent, rate, advice):
    assert verdict(spent, rate).advice is advice


def test_without_a_budget_everything_goes_on():
    assert verdict("1000000", "60", None).advice is Advice.GO_ON


def test_reasons_can_be_read():
    assert verdict("9", "60").reason == (
        "the budget of $10.00 is reached: $9.00 spent, $1.00 kept for ending what runs"
    )
    assert verdict("1", unknown=2).reason == "$1.00 of the budget of $10.00 spent (beside 2 of unknown price)"
    assert usd(Decimal("0.0123")) == "$0.0123"
    assert usd(Decimal("0.00001")) == "less than $0.0001"


def test_a_plan_must_fit_with_what_ending_costs():
    check_plan(None, None, budget_usd=None, shutdown_s=60)
    check_plan(Decimal(9), Decimal(60), budget_usd=Decimal(10), shutdown_s=60)
    check_plan(Decimal(0), Decimal(0), budget_usd=Decimal(1), shutdown_s=60)
    with pytest.raises(Infeasible, match=r"about \$10\.01, more than the budget of \$10\.00") as caught:
        check_plan(Decimal("9.01"), Decimal(60), budget_usd=Decimal(10), shutdown_s=60)
    assert (caught.value.exit_code, caught.value.code) == (3, "infeasible")
    with pytest.raises(Infeasible, match="not known"):
        check_plan(Decimal(1), None, budget_usd=Decimal(10), shutdown_s=60)

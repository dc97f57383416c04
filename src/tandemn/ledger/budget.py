"""Whether a budget lets something go on (PURE).

Ending takes time, and time costs: the decision keeps a reserve for it, so that the last bill is still
within the budget where replicas end as fast as they should.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from tandemn.errors import Infeasible
from tandemn.prices import usd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tandemn.ledger.figures import Figure

_SECONDS_PER_HOUR = Decimal(3600)


class Advice(StrEnum):
    GO_ON = "go_on"
    DRAIN = "drain"
    """Within the budget, but only just enough is left for ending."""
    OVER_BUDGET = "over_budget"
    """The budget is used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    advice: Advice
    reason: str
    spent_usd: Decimal
    """Of what has a price."""
    usd_per_hour: Decimal
    """Of what has a price and runs now."""


def decide(spent: Figure, usd_per_hour: Figure, *, budget_usd: Decimal | None, shutdown_s: float) -> Verdict:
    """Weigh what was spent, and what ending will still cost, against the budget.

    What runs at an unknown price is not counted; the reason says so.

    Args:
        spent: so far.
        usd_per_hour: of all that runs now.
        budget_usd: None: there is no limit.
        shutdown_s: how long ending takes, at most.
    """
    reserve = usd_per_hour.at_least * Decimal(repr(shutdown_s)) / _SECONDS_PER_HOUR
    if budget_usd is None:
        advice, reason = Advice.GO_ON, "there is no budget"
    elif spent.at_least >= budget_usd:
        advice = Advice.OVER_BUDGET
        reason = f"the budget of {usd(budget_usd)} is used up: {usd(spent.at_least)} spent"
    elif spent.at_least + reserve >= budget_usd:
        advice = Advice.DRAIN
        reason = (
            f"the budget of {usd(budget_usd)} is reached: {usd(spent.at_least)} spent, "
            f"{usd(reserve)} kept for ending what runs"
        )
    else:
        advice = Advice.GO_ON
        reason = f"{usd(spent.at_least)} of the budget of {usd(budget_usd)} spent"
    if budget_usd is not None and (unknown := max(spent.unknown, usd_per_hour.unknown)):
        reason += f" (beside {unknown} of unknown price)"
    return Verdict(advice=advice, reason=reason, spent_usd=spent.at_least, usd_per_hour=usd_per_hour.at_least)


def check_prices(prices: Iterable[Decimal | None], *, budget_usd: Decimal | None) -> None:
    """Refuse what a budget could not be kept for: something in it has no known price.

    Raises:
        Infeasible: a price is None.
    """
    if budget_usd is not None and any(price is None for price in prices):
        raise Infeasible(
            "the price of something in this plan is not known, so the budget could not be kept",
            param="budget_usd",
            next_step="choose what has a known price, or leave --budget out",
        )


def check_plan(
    planned_usd: Decimal | None,
    usd_per_hour: Decimal | None,
    *,
    budget_usd: Decimal | None,
    shutdown_s: float,
) -> None:
    """Refuse a plan that its budget cannot pay for.

    Args:
        planned_usd: what the plan is expected to cost; None: not known.
        usd_per_hour: of all replicas of the plan together; None: not known.
        budget_usd: None: there is no limit, and nothing to refuse.
        shutdown_s: how long ending takes, at most.

    Raises:
        Infeasible: the budget is too small, or cannot be kept because no price is known.
    """
    if budget_usd is None:
        return
    if planned_usd is None or usd_per_hour is None:
        raise Infeasible(
            "the price of the planned replicas is not known, so the budget could not be kept",
            param="budget_usd",
            next_step="choose hardware whose price is known, or leave --budget out",
        )
    needed = planned_usd + usd_per_hour * Decimal(repr(shutdown_s)) / _SECONDS_PER_HOUR
    if needed > budget_usd:
        raise Infeasible(
            f"the plan needs about {usd(needed)}, more than the budget of {usd(budget_usd)}",
            param="budget_usd",
            next_step="raise --budget, send fewer requests, or run it as far as the money goes with --force",
        )

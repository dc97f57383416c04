"""What the same requests would have cost otherwise: all serverless, or all on demand (PURE).

Both replay the router's busy periods, of all backends laid over each other, through the rules by which the actual
figures are made. They are worked out, not observed: always labelled estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.ledger.containers import BusyPeriod, ServerlessTerms, containers
from tandemn.ledger.entries import Label, Part, RuleName, Started
from tandemn.ledger.figures import Figure, total
from tandemn.ledger.fold import Item, figure, segments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from tandemn.prices import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """The actual figure beside another one; None: one of them is not known."""

    instead: Figure
    saved_usd: Decimal | None
    """Negative where the other way would have been cheaper."""
    saved_share: Decimal | None
    """Of what the other way would have cost; None where that is nothing."""
    label: Label = Label.ESTIMATED


def all_serverless(periods: Sequence[BusyPeriod], terms: ServerlessTerms, price: Price | None) -> Figure:
    """Price the containers that the periods would have needed."""
    return total(_price(span.start, span.end, terms.rule, price) for span in containers(periods, terms))


def all_on_demand(
    periods: Sequence[BusyPeriod],
    *,
    concurrency: int,
    since: float,
    until: float,
    rule: RuleName,
    price: Price | None,
) -> Figure:
    """Price a fixed fleet, up from `since` to `until`, that is large enough for the highest peak.

    Args:
        periods: what was served.
        concurrency: requests that one replica takes at a time.
        since: when the fleet is up, Unix time.
        until: when it is taken down.
        rule: the cloud's.
        price: of one replica.
    """
    peak = max((each.peak for each in periods), default=0)
    replicas = max(1, -(-peak // concurrency))
    return total(_price(since, until, rule, price) for _ in range(replicas))


def savings(actual: Figure, instead: Figure) -> Savings:
    """Set what was spent against what would have been."""
    if actual.usd is None or instead.usd is None:
        return Savings(instead=instead, saved_usd=None, saved_share=None)
    saved = instead.usd - actual.usd
    return Savings(instead=instead, saved_usd=saved, saved_share=saved / instead.usd if instead.usd else None)


def _price(start: float, end: float, rule: RuleName, price: Price | None) -> Figure:
    started = Started(
        at=start, item="", owner="", part=Part.SERVERLESS, price=price, rule=rule, label=Label.ESTIMATED
    )
    item = Item(started=started, ended_at=end)
    return figure(item, segments(item, end))

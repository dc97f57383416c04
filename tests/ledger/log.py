"""Short ways to write a log of facts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tandemn.ledger.entries import Ended, Part, Repriced, RuleName, Started
from tandemn.prices import Price


def price(usd_per_hour: str | int, source: str = "test") -> Price:
    return Price(usd_per_hour=Decimal(usd_per_hour), source=source, at=0.0)


def begin(
    at: float, item: str, usd: str | int | None = "3600", part: Part = Part.SPOT, **more: Any
) -> Started:
    """3600 USD an hour make the hand-computed figures read as seconds."""
    known = None if usd is None else price(usd)
    return Started(at=at, item=item, owner=more.pop("owner", "job"), part=part, price=known, **more)


def serverless(at: float, item: str, rule: RuleName, **more: Any) -> Started:
    return begin(at, item, part=Part.SERVERLESS, rule=rule, **more)


def end(at: float, item: str) -> Ended:
    return Ended(at=at, item=item)


def reprice(at: float, item: str, usd: str | int | None) -> Repriced:
    return Repriced(at=at, item=item, price=None if usd is None else price(usd))

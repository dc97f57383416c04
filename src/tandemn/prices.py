"""A price with its origin: what a launcher quotes, an event records and the ledger multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per hour of one running thing. A price that is not known is None, never 0."""

    usd_per_hour: Decimal
    source: str
    """Where it was read: a catalog, an API, a setting."""
    at: float
    """When it was read, Unix time."""

    def __post_init__(self) -> None:
        assert self.usd_per_hour.is_finite(), "a price is a number"
        assert self.usd_per_hour >= 0, "a price is not negative"


def to_event(price: Price | None) -> dict[str, Any]:
    """Render as the fields of an event: decimals as strings, which JSON keeps exact."""
    if price is None:
        return {"price_usd_per_hour": None, "price_source": None, "price_at": None}
    return {
        "price_usd_per_hour": str(price.usd_per_hour),
        "price_source": price.source,
        "price_at": price.at,
    }


def from_event(data: Mapping[str, Any]) -> Price | None:
    """Read the fields of an event; None where they are missing (an older event) or make no price."""
    try:
        usd_per_hour = Decimal(str(data["price_usd_per_hour"]))
        at = float(data["price_at"])
    except (KeyError, TypeError, ValueError, InvalidOperation):
        return None
    if not usd_per_hour.is_finite() or usd_per_hour < 0:
        return None
    return Price(usd_per_hour=usd_per_hour, source=str(data.get("price_source") or "not recorded"), at=at)


def usd(amount: Decimal) -> str:
    """Write an amount: cents, or as many digits as a small one needs."""
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:,.4f}" if amount >= Decimal("0.0001") else "less than $0.0001"
